/* Values on a virtual device: an operator is computed by the CPU's kernel, on the same memory seen as CPU tensors.
 *
 * A boxed fallback, below autograd and above the backends, sees every operator on its way to a CUDA kernel. The CUDA
 * kernel's host code runs as always, so that it allocates what it allocates; then the CPU's kernel writes what the
 * device would have written. It knows torch's dispatcher; which operators have another CPU kernel, twins.py knows.
 *
 * Whoever takes a size from what was not computed is told to Python. */
#include "computed.h"
#include "operators.h"
#include "tensors.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <cmath>
#include <cstring>

using c10::DispatchKey;
using c10::DispatchKeySet;
using torch::jit::Stack;

#define API extern "C" __attribute__((visibility("default")))

extern "C" { /* of the virtual GPU */
void vgpu_answer(const long long *counts, int number); /* what the next copies of a count to the host deliver */
void vgpu_elements(long long number);                  /* of the sparse matrix that is to be made; -1: not known */
void vgpu_hold(int by);                                /* above 0: this thread's copies and fills on a device do nothing */
void vgpu_each_thread(void (*visit)(void));            /* called when a thread asks CUDA for its device */
}

namespace {

constexpr auto HERE = DispatchKey::Fake; /* below autograd, above the backends, and of no other use in torch */

struct {
  bool on = false;
  int64_t floats = 0, integers = 0, bytes = 0, copies = 0; /* of the largest tensor of each kind that is computed */
  void (*told)(const char *op, int spread) = nullptr;
} settings;

thread_local bool answering = false; /* the next count that is copied to the host is known */
thread_local int inside = 0; /* > 0: in the kernel of an operator that is computed as a whole */
thread_local int checking = 0; /* > 0: only whether all is well is read */
thread_local bool asks_all = false; /* and of flags whether all hold (are finite, the least is large enough), not whether
                                        any does (it failed) */

/* ---- tensors */

/* Of the size up to which it is computed. Integers of one byte are weights or pixels as a rule, and there are many; so
 * may be what a mask is made of. */
bool is_small(const at::Tensor &tensor, bool of_mask = false) {
  const bool is_byte = tensor.scalar_type() == at::kByte || tensor.scalar_type() == at::kChar;
  const auto floats = of_mask ? std::max(settings.floats, settings.bytes) : settings.floats;
  const auto limit = is_number(tensor) ? floats : is_byte ? settings.bytes : settings.integers;
  return static_cast<int64_t>(tensor.nbytes()) <= limit;
}

/* Ids and masks come to a device whatever they take, if anything does; packed weights, of 32 bits too, are not moved. */
bool is_moved(const at::Tensor &tensor) {
  if (static_cast<int64_t>(tensor.nbytes()) <= settings.copies) return true;
  return settings.copies && (tensor.scalar_type() == at::kLong || tensor.scalar_type() == at::kBool) && is_small(tensor);
}

/* ---- random numbers: decided by the device's generator, which the CUDA kernel moves on */

std::optional<uint64_t> seed_for(at::ArrayRef<c10::IValue> arguments, const at::Tensor *some, c10::Device device) {
  at::Generator generator;
  for (const auto &each : arguments)
    if (each.isGenerator() && each.toGenerator().device().is_cuda()) generator = each.toGenerator();
  if (!generator.defined()) {
    if (some) device = some->device();
    if (!device.is_cuda()) return std::nullopt;
    generator = at::globalContext().defaultGenerator(device);
  }
  std::lock_guard<std::mutex> guard(generator.mutex());
  uint64_t seed = 0, offset = 0;
  try {
    seed = generator.current_seed(), offset = generator.get_offset();
  } catch (const c10::Error &) { /* while a graph is captured: its replays alone know, and they are not computed */
  }
  seed += 0x9E3779B97F4A7C15ull * (offset + 1);
  seed = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9ull;
  seed = (seed ^ (seed >> 27)) * 0x94D049BB133111EBull;
  return seed ^ (seed >> 31);
}

/* ---- on the host */

struct OnHost {
  at::AutoDispatchBelowADInplaceOrView below;
  c10::impl::ExcludeDispatchKeyGuard without{DispatchKeySet({HERE, DispatchKey::Python, DispatchKey::PythonTLSSnapshot}) |
      c10::autocast_dispatch_keyset};
  int saved = inside;
  OnHost() { inside = 0; }
  ~OnHost() { inside = saved; }
};

bool has_view(const at::Tensor &tensor) {
  return place_of(tensor) == Place::device || (tensor.defined() && tensor._is_zerotensor());
}

c10::IValue for_host(const c10::IValue &value, const at::Generator &generator) {
  if (value.isTensor()) return has_view(value.toTensor()) ? c10::IValue(host_view(value.toTensor())) : value;
  if (value.isTensorList()) {
    c10::List<at::Tensor> views;
    for (const at::Tensor &each : value.toTensorList()) views.push_back(has_view(each) ? host_view(each) : each);
    return views;
  }
  if (value.isList() && !value.toListRef().empty()) {
    auto list = value.toList().copy();
    for (size_t i = 0; i < list.size(); i++) {
      c10::IValue each = list.get(i);
      if (each.isTensor() && has_view(each.toTensor())) list.set(i, host_view(each.toTensor()));
    }
    return list;
  }
  if (value.isDevice() && value.toDevice().is_cuda()) return c10::Device(at::kCPU);
  if (value.isGenerator() && generator.defined()) return generator;
  return value;
}

DispatchKey host_key(const c10::OperatorHandle &op, const Stack &host) {
  auto key = DispatchKey::CPU;
  auto look = [&](const at::Tensor &each) {
    if (!is_sparse(each)) return;
    if (!is_coo(each)) key = DispatchKey::SparseCsrCPU;
    else if (key == DispatchKey::CPU) key = DispatchKey::SparseCPU;
  };
  for (const auto &each : host) {
    if (each.isTensor()) look(each.toTensor());
    if (each.isTensorList())
      for (const at::Tensor &one : each.toTensorList()) look(one);
  }
  if (key == DispatchKey::CPU && !op.hasComputedKernelForDispatchKey(key)) /* it makes a sparse tensor of others */
    return has_kernel(op, {DispatchKey::SparseCPU}) ? DispatchKey::SparseCPU : DispatchKey::SparseCsrCPU;
  return key;
}

/* Runs the CPU's kernel; false if there is none for this. */
bool compute(const c10::OperatorHandle &op, Operator &known, Stack &host, std::optional<uint64_t> seed) {
  static struct : c10::WarningHandler {
    void process(const c10::Warning &) override {}
  } silent; /* the CUDA kernel has warned already, if there is anything to warn of */
  OnHost guard;
  c10::WarningUtils::WarningHandlerGuard quiet(&silent);
  at::Generator shared = at::detail::getDefaultCPUGenerator();
  at::Tensor before;
  try {
    if (seed) {
      std::lock_guard<std::mutex> lock(shared.mutex());
      before = shared.get_state();
      shared.set_current_seed(*seed);
    }
    /* In torch 2.11 and older a kernel with several `out` arguments returns references to what was dropped. */
    const Stack held = host;
    op.redispatchBoxed(DispatchKeySet(host_key(op, host)), &host);
    if (before.defined()) shared.set_state(before);
    return true;
  } catch (const c10::NotImplementedError &) {
    known.refused = true;
  } catch (const std::exception &) { /* values that make no sense: an index that was never computed */
  }
  if (before.defined()) shared.set_state(before);
  return false;
}

at::Scalar zero_of(at::ScalarType type) {
  if (c10::isComplexType(type)) return c10::complex<double>(0);
  if (c10::isFloatingType(type)) return 0.0;
  return type == at::kBool ? at::Scalar(false) : at::Scalar(0);
}

void tell(const Operator &known, bool spread) {
  if (settings.told && !checking) settings.told(known.name.c_str(), spread);
}

/* Of a result that was not computed: zeros where somebody might look; choices go round, a router's from the first on, of
 * more (the next of many tokens) from the middle, where none has a meaning of its own. */
void leave_uncomputed(const Operator &known, const at::Tensor &result, int64_t among) {
  const auto size = static_cast<int64_t>(result.nbytes());
  const bool chosen = known.spread && !is_number(result) && among > 1;
  const auto limit = is_number(result) ? std::min<int64_t>(settings.floats, 4096) : chosen ? settings.integers : settings.bytes;
  if (!size || size > limit) return;
  if (chosen) {
    OnHost guard;
    auto view = host_view(result);
    const auto first = among > 512 ? among / 2 : 0;
    view.copy_(at::arange(first, first + result.numel(), view.options().dtype(at::kLong)).remainder_(among).view(result.sizes()));
    remember(result, true, true); /* from here on it counts as chosen */
  } else if (result.is_non_overlapping_and_dense()) std::memset(result.data_ptr(), 0, static_cast<size_t>(size));
}

/* Whether it holds of every number but NaN and the infinities, as `isfinite` asks: of what was not computed, too. */
bool is_of_the_finite(const Operator &known, at::ArrayRef<c10::IValue> arguments) {
  if (known.name == "aten::eq") return arguments[1].isTensor() && arguments[0].toTensor().is_same(arguments[1].toTensor());
  return known.name == "aten::ne" && arguments[1].isScalar() && std::isinf(arguments[1].toScalar().toDouble());
}

/* Whether it compares two parts of one tensor, as is asked of a box's corners or of numbers in order: that the later is
 * not the lesser. */
bool is_of_the_ordered(const Operator &known, at::ArrayRef<c10::IValue> arguments) {
  if (!any_of(known.name, {"aten::ge", "aten::gt"}) || !arguments[1].isTensor()) return false;
  const auto &later = arguments[0].toTensor(), &earlier = arguments[1].toTensor();
  return place_of(later) == Place::device && place_of(earlier) == Place::device && !is_sparse(later) && !is_sparse(earlier) &&
      later.is_alias_of(earlier) && later.storage_offset() > earlier.storage_offset();
}

/* How many elements a sparse tensor has whose indices are known, when those of one place are added up. */
long long coalesced(const Operator &known, at::ArrayRef<c10::IValue> arguments, long long elements) {
  if (known.name != "aten::_coalesce" || !is_coo(arguments[0].toTensor())) return elements;
  const auto indices = parts_of(arguments[0].toTensor()).front();
  if (!is_small(indices) || value_of(indices) == Value::unknown || !indices.numel()) return elements;
  OnHost guard;
  return std::get<0>(at::unique_dim(host_view(indices), 1)).size(1);
}

/* Whether it asks of flags that all are set, or joins such flags. */
bool is_of_the_set(const Operator &known, at::ArrayRef<c10::IValue> arguments) {
  if (!any_of(known.name, {"aten::all", "aten::mul", "aten::bitwise_and", "aten::logical_and"})) return false;
  return std::all_of(arguments.begin(), arguments.end(), [](const c10::IValue &each) {
    if (!each.isTensor()) return true;
    const auto &flags = each.toTensor();
    return is_flag(flags) && place_of(flags) == Place::device && !is_sparse(flags) && holds(flags);
  });
}

int64_t choices(const Operator &known, at::ArrayRef<c10::IValue> arguments) {
  if (!known.spread || !arguments[0].isTensor()) return 0;
  const auto &from = arguments[0].toTensor();
  if (!from.dim() || !from.is_floating_point()) return 0;
  if (known.name == "aten::multinomial") return from.size(-1);
  auto place = known.name == "aten::topk" ? 2 : 1;
  auto dim = arguments.size() > static_cast<size_t>(place) && arguments[place].isInt() ? arguments[place].toInt() : -1;
  return from.size(dim);
}

/* ---- the fallback */

void pass_on(const c10::OperatorHandle &op, DispatchKeySet keys, Stack *stack) {
  op.redispatchBoxed(keys & DispatchKeySet(DispatchKeySet::FULL_AFTER, HERE), stack);
}

struct Inside {
  bool holds;
  explicit Inside(bool holds) : holds(holds) { inside++; if (holds) vgpu_hold(1); }
  ~Inside() { inside--; if (holds) vgpu_hold(-1); }
};

/* As long as this lives, a count that a kernel copies to the host is this one. */
struct Answer {
  static thread_local long long current;
  bool gives, before = answering;
  long long number = current;
  Answer(bool gives, long long number) : gives(gives) { if (gives) answering = true, current = number, vgpu_answer(&number, 1); }
  ~Answer() { if (gives) answering = before, current = number, vgpu_answer(&number, before); }
};
thread_local long long Answer::current = 0;

/* As long as this lives, cuSPARSE has found that a product or a sum has so many elements. */
struct Elements {
  bool gives;
  Elements(bool gives, long long number) : gives(gives) { if (gives) vgpu_elements(number); }
  ~Elements() { if (gives) vgpu_elements(-1); }
};

template <class Visit> void each_result(const c10::OperatorHandle &op, Stack *stack, Visit visit) {
  const auto &returns = op.schema().returns();
  auto first = stack->size() - returns.size();
  for (size_t i = 0; i < returns.size(); i++) {
    const auto *alias = returns[i].alias_info();
    visit(i, (*stack)[first + i], alias && alias->isWrite());
  }
}

Stack for_host(const Operator &what, at::ArrayRef<c10::IValue> arguments, const at::Generator &generator) {
  OnHost guard;
  Stack host;
  host.reserve(arguments.size());
  for (const auto &each : arguments) host.push_back(for_host(each, generator));
  if (what.adapt) what.adapt(host);
  return host;
}

struct Checking {
  bool checks;
  explicit Checking(bool checks) : checks(checks) { checking += checks; }
  ~Checking() { checking -= checks; }
};

/* A collective, which the runtime's NCCL or gloo makes: the first argument is what is written to, the second, if it holds
 * tensors, what is sent; without it the tensors stay what they are, but for those that are received. */
void exchange(const c10::OperatorHandle &op, const Operator &what, DispatchKeySet keys, Stack *stack) {
  const size_t count = op.schema().arguments().size();
  if (count < 2) return pass_on(op, keys, stack);
  const c10::IValue written = stack->at(stack->size() - count), sent = stack->at(stack->size() - count + 1);
  bool known_inputs = true, sends = false;
  each_tensor(sent, [&](const at::Tensor &each) {
    sends = true;
    if (known_inputs && place_of(each) == Place::device && value_of(each) == Value::unknown) known_inputs = false;
  });
  pass_on(op, keys, stack);
  if (!sends && what.name.rfind("c10d::recv", 0) != 0) return;
  each_tensor(written, [&](const at::Tensor &each) {
    if (place_of(each) == Place::device) remember(each, known_inputs && static_cast<int64_t>(each.nbytes()) <= settings.copies);
  });
}

bool contains(const std::vector<const void *> &storages, const at::Tensor &tensor) {
  return std::find(storages.begin(), storages.end(), tensor.storage().unsafeGetStorageImpl()) != storages.end();
}

void fallback(const c10::OperatorHandle &op, DispatchKeySet keys, Stack *stack) {
  if (!settings.on) return pass_on(op, keys, stack);
  Operator &what = known(op);
  Checking guard(what.checks);
  if (checking && any_of(what.name, {"aten::all", "aten::any", "aten::min"})) asks_all = what.name != "aten::any";
  if (what.kind == Kind::pass || (inside && !what.dynamic)) return pass_on(op, keys, stack);
  if (what.kind == Kind::exchange) return exchange(op, what, keys, stack);

  const size_t count = op.schema().arguments().size();
  auto arguments = at::ArrayRef<c10::IValue>(stack->data() + stack->size() - count, count);
  bool foreign = false, fits = true, known_inputs = true, known_sizes = true, on_device = false, on_host = false;
  bool assumed = false, assumed_sizes = false; /* that something was chosen evenly */
  bool sparse = what.sparse;
  long long elements = 0; /* of a sparse tensor */
  std::vector<const void *> taken; /* storages that a sparse tensor may be made of */
  std::optional<at::Tensor> some;
  c10::Device device(at::kCPU);
  const auto &schema_arguments = op.schema().arguments();
  /* A mask of ones is made in floating point on the device, and asked as flags whether nothing is padded. */
  const bool of_mask = what.fills || (what.kind == Kind::copy && !is_number(arguments[0].toTensor()));
  for (size_t i = 0; i < count; i++) {
    const bool written = schema_arguments[i].alias_info() && schema_arguments[i].alias_info()->isWrite();
    if (arguments[i].isDevice()) device = arguments[i].toDevice();
    if (arguments[i].isTensor() && is_sparse(arguments[i].toTensor())) {
      sparse = true;
      elements = parts_of(arguments[i].toTensor()).back().size(0);
    }
    each_tensor(arguments[i], [&](const at::Tensor &each) {
      auto place = place_of(each);
      if (place == Place::foreign) foreign = true;
      if (place == Place::host) on_host = true;
      if (place != Place::device) return;
      on_device = true;
      if (!some) some = each;
      fits = fits && is_small(each, of_mask);
      if (what.sparse) taken.push_back(each.storage().unsafeGetStorageImpl());
      if (written && what.writes_only) return;
      const bool sizes = what.by_flags ? each.scalar_type() == at::kBool || each.scalar_type() == at::kByte
                                       : !what.by_counts || !is_number(each);
      const auto value = value_of(each);
      if (value == Value::unknown) known_inputs = false, known_sizes = known_sizes && !sizes;
      if (value == Value::assumed) assumed = true, assumed_sizes = assumed_sizes || sizes;
    });
  }
  if (what.kind == Kind::copy && on_host && on_device) fits = is_moved(*some);
  if (foreign || !(on_device || device.is_cuda())) return pass_on(op, keys, stack);
  if (sparse && what.kind == Kind::copy) return pass_on(op, keys, stack); /* it copies its parts */
  if (!known_sizes && what.tells && !answering && (what.kind != Kind::read || is_count(*some))) tell(what, false);
  if (assumed_sizes && what.tells && !answering && (what.kind != Kind::read || some->scalar_type() == at::kBool)) tell(what, true);
  if (!known_inputs && fits && checking && what.name == "aten::unique_consecutive") {
    /* In matrix_exp, of how often each matrix is to be squared: not at all. */
    std::memset(some->data_ptr(), 0, some->nbytes());
    remember(*some, true, true);
    known_inputs = assumed = true;
  }
  if (what.kind == Kind::read) {
    const auto zero = zero_of(some->scalar_type());
    pass_on(op, keys, stack);
    if (!known_inputs && !(answering && is_count(*some))) /* a count that was just delivered is known */
      stack->back() = checking && asks_all && zero.isBoolean() ? at::Scalar(true) : zero;
    return;
  }
  if (!fits || what.refused || !known_inputs) { /* what would come of leftovers is nobody's: a scaler might skip its step */
    const auto among = choices(what, arguments);
    const bool hold = checking ? !known_inputs && what.name == "aten::all" : is_of_the_finite(what, arguments) ||
        is_of_the_ordered(what, arguments) || is_of_the_set(what, arguments);
    {
      Answer most(what.counted, coalesced(what, arguments, elements));
      pass_on(op, keys, stack);
    }
    each_result(op, stack, [&](size_t, c10::IValue &result, bool written) {
      each_tensor(result, [&](const at::Tensor &each) {
        if (!known_inputs && what.kind == Kind::copy && place_of(each) == Place::host && each.is_non_overlapping_and_dense())
          std::memset(each.data_ptr(), 0, each.nbytes());
        if (place_of(each) != Place::device || !each.numel() || contains(taken, each)) return;
        if (!written && hold && is_flag(each)) { /* whoever reads it later */
          if (!is_small(each)) return remember(each, Value::holds);
          std::memset(each.data_ptr(), 1, each.nbytes());
          return remember(each, true);
        }
        remember(each, false);
        if (!written) leave_uncomputed(what, each, among);
      });
    });
    return;
  }

  std::optional<uint64_t> seed;
  if (what.random) seed = seed_for(arguments, some ? &*some : nullptr, device);
  at::Generator generator;
  if (seed) generator = at::detail::createCPUGenerator(*seed);
  const auto among = choices(what, arguments);
  bool done = false;
  Stack host, given;
  if ((what.dynamic || sparse) && !what.mutates) { /* how many there are has to be known before the kernel asks */
    host = for_host(what, arguments, generator);
    done = compute(op, what, host, seed);
    long long number = 0;
    const auto *first = done && host.front().isTensor() ? &host.front().toTensor() : nullptr;
    const bool makes_sparse = first && is_sparse(*first);
    if (makes_sparse) number = parts_of(*first).back().size(0);
    else if (first) number = first->dim() ? first->size(what.name == "aten::unique_dim" ? arguments[1].toInt() : 0) : first->numel();
    Answer count(what.counted, number);
    Elements filled(makes_sparse, number);
    pass_on(op, keys, stack); /* what it calls inside finds its own values */
  } else {
    given = arguments.vec();
    {
      std::optional<Inside> guard;
      if (!what.apart) guard.emplace(what.mutates);
      pass_on(op, keys, stack);
    }
    bool too_large = false;
    each_result(op, stack, [&](size_t, c10::IValue &result, bool written) {
      if (!written) each_tensor(result, [&](const at::Tensor &each) { if (place_of(each) == Place::device && !is_small(each) && what.kind != Kind::copy) too_large = true; });
    });
    if (!too_large) { /* only now: what is written to may have been given its size just then */
      host = for_host(what, given, generator);
      done = compute(op, what, host, seed);
    }
  }
  if (done && host.size() != op.schema().returns().size()) done = false;
  /* What was written by an operator that returns nothing. */
  for (size_t i = 0; done && what.writes_only && host.empty() && i < given.size(); i++)
    if (const auto *alias = schema_arguments[i].alias_info(); alias && alias->isWrite())
      each_tensor(given[i], [&](const at::Tensor &each) { remember(each, true, assumed); });
  each_result(op, stack, [&](size_t i, c10::IValue &result, bool written) {
    if (done && !written && (result.isBool() || result.isScalar())) result = host[i];
    std::vector<at::Tensor> results, twins;
    each_tensor(result, [&](const at::Tensor &each) { results.push_back(each); });
    if (done && !written) each_tensor(host[i], [&](const at::Tensor &each) { twins.push_back(each); });
    for (size_t j = 0; j < results.size(); j++) {
      auto &each = results[j];
      if (place_of(each) != Place::device) {
        /* A seed that stays on the host: the backward is to draw from the one that the CPU's kernel drew from. */
        if (what.random && done && !written && each.defined() && j < twins.size() && twins[j].sizes() == each.sizes()) {
          OnHost guard;
          each.copy_(twins[j]);
        }
        continue;
      }
      bool right = done;
      if (done && !written && j < twins.size() && twins[j].defined()) {
        OnHost guard;
        const bool is_wanted = each.numel() || !i; /* unique_dim counts on the CPU what nobody asked for */
        if (twins[j].sizes() != each.sizes() && what.dynamic && is_wanted && result.isTensor() && !is_sparse(result.toTensor())) {
          each = at::empty(twins[j].sizes(), each.options()); /* its kernel asked in a way that is not known here */
          result = each;
        }
        /* A reserve space is its kernel's own affair; of bags there may be one less than offsets. */
        const bool begins = each.scalar_type() == at::kByte || what.name.rfind("aten::_embedding_bag", 0) == 0;
        if (begins && each.dim() == 1 && twins[j].dim() == 1 && twins[j].numel() < each.numel())
          host_view(each).zero_().narrow(0, 0, twins[j].numel()).copy_(twins[j]);
        else if (twins[j].sizes() != each.sizes()) {
          /* Another thing, which the CPU's backward would read wrongly; of what is empty it reads nothing. */
          right = what.keeps || !twins[j].numel();
          if (right && !what.keeps) host_view(each).zero_();
        }
        else if (each.numel() && !contains(taken, each)) host_view(each).copy_(twins[j]);
      }
      if (!each.numel() || contains(taken, each)) continue;
      if (sparse && !written && j < twins.size() && twins[j].sizes() != each.sizes()) continue; /* from its own operators */
      remember(each, right, assumed);
      if (!written && !right) leave_uncomputed(what, each, among);
    }
  });
}

TORCH_LIBRARY_IMPL(_, Fake, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

bool is_nobodys(const Operator &found) { return found.kind == Kind::pass && !found.checks; }

/* Operators that are nobody's business here cost nothing when they are called. */
void leave_out(void) {
  static torch::Library library(torch::Library::IMPL, "aten", HERE, __FILE__, __LINE__);
  auto &dispatcher = c10::Dispatcher::singleton();
  for (const auto &name : dispatcher.getAllOpNames()) {
    if (name.name.rfind("aten::", 0) != 0) continue;
    auto op = dispatcher.findOp(name);
    if (!op || op->hasKernelForDispatchKey(HERE) || !is_nobodys(look_at(*op))) continue;
    auto full = name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
    library.impl(full.c_str(), torch::CppFunction::makeFallthrough());
  }
}

void include(void) {
  if (!c10::impl::tls_is_dispatch_key_included(HERE)) c10::impl::tls_set_dispatch_key_included(HERE, true);
}

} // namespace

/* What takes a while and can be done before; a fork of this process has it then. */
API void values_prepare(void) { leave_out(); }

/* For a new thread, before its first operator: CUDA hears of a thread only inside of one. */
API void values_thread(void) { include(); }

/* Sizes are bytes; told gets the operator that takes a size from what was not computed, or whose choices were spread. */
API void values_begin(int64_t floats, int64_t integers, int64_t bytes, int64_t copies, void (*told)(const char *, int)) {
  settings.floats = floats, settings.integers = integers, settings.bytes = bytes;
  settings.copies = copies, settings.told = told;
  settings.on = true;
  include();
  vgpu_each_thread(include);
}
