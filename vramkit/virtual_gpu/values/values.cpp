/* Values on a virtual device: an operator is computed by the CPU's kernel, on the same memory seen as CPU tensors.
 *
 * A boxed fallback, below autograd and above the backends, sees every operator on its way to a CUDA kernel. The CUDA
 * kernel's host code runs as always, so that it allocates what it allocates; then the CPU's kernel writes what the
 * device would have written. It knows torch's dispatcher; which operators have another CPU kernel, twins.py knows.
 *
 * What was not computed (too large, no CPU kernel, written by a compiled kernel) is remembered by storage, and whoever
 * takes a size from it is told to Python. */
#include <ATen/Functions.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <mutex>
#include <unordered_map>
#include <cstring>

using c10::DispatchKey;
using c10::DispatchKeySet;
using torch::jit::Stack;

#define API extern "C" __attribute__((visibility("default")))

extern "C" { /* of the virtual GPU */
void vgpu_answer(const long long *counts, int number); /* what the next copies of a count to the host deliver */
void vgpu_hold(int by);                                /* above 0: this thread's copies and fills on a device do nothing */
bool vgpu_was_copied(const void *at);                  /* whether the last write there was a copy that nobody else saw */
void vgpu_each_thread(void (*visit)(void));            /* called when a thread asks CUDA for its device */
}

namespace {

constexpr auto HERE = DispatchKey::Fake; /* below autograd, above the backends, and of no other use in torch */

struct {
  bool on = false;
  int64_t floats = 0, integers = 0, copies = 0; /* bytes of the largest tensor of each kind that is computed */
  void (*told)(const char *op) = nullptr;
} settings;

enum class Kind { pass, compute, copy, read };

struct Operator {
  Kind kind = Kind::pass;
  bool dynamic = false;  /* the sizes of its results depend on values */
  bool counted = false;  /* its kernel copies the number of its results to the host */
  bool mutates = false;  /* writes to its arguments */
  bool writes_only = false; /* and reads nothing of what it writes to */
  bool random = false;
  bool spread = false;   /* picks the largest: a router's choice, where it was not computed */
  bool refused = false;  /* the CPU's kernel is not there, or failed for want of one */
  bool widens = false;   /* may return float32 of a half, which the CPU's kernel does not */
  std::string name;
};

thread_local bool answering = false; /* the next count that is copied to the host is known */
thread_local int inside = 0; /* > 0: in the kernel of an operator that is computed as a whole */

/* ---- what was computed, by storage; a later one at the same address is another */

/* Never destroyed: threads of torch's may outlive what a process ends with. */
std::mutex &computed_lock = *new std::mutex;
auto &computed = *new std::unordered_map<c10::StorageImpl *, c10::weak_intrusive_ptr<c10::StorageImpl>>;

void remember(const at::Tensor &tensor, bool is_right) {
  auto *storage = tensor.storage().unsafeGetStorageImpl();
  vgpu_was_copied(storage->data()); /* and written to since */
  std::lock_guard<std::mutex> guard(computed_lock);
  if (!is_right) {
    computed.erase(storage);
    return;
  }
  static size_t next_look = 4096;
  if (computed.size() >= next_look) {
    for (auto at = computed.begin(); at != computed.end();) at = at->second.expired() ? computed.erase(at) : std::next(at);
    next_look = std::max<size_t>(4096, 2 * computed.size());
  }
  computed.try_emplace(storage, tensor.storage().getWeakStorageImpl());
}

bool is_computed(const at::Tensor &tensor) {
  auto *storage = tensor.storage().unsafeGetStorageImpl();
  {
    std::lock_guard<std::mutex> guard(computed_lock);
    if (computed.count(storage)) return true; /* the weak pointer keeps a dead one's place, so none can take it */
  }
  if (!tensor.numel()) return true;
  if (!vgpu_was_copied(storage->data())) return false;
  remember(tensor, true);
  return true;
}

/* ---- operators */

bool any_of(const std::string &name, std::initializer_list<const char *> names) {
  for (auto each : names)
    if (name == each) return true;
  return false;
}

Operator look_at(const c10::OperatorHandle &op) {
  Operator found;
  if (!op.hasSchema()) return found;
  const auto &schema = op.schema();
  const std::string &name = found.name = schema.name();
  bool reads_alias = false;
  for (const auto &argument : schema.arguments())
    if (const auto *alias = argument.alias_info()) {
      if (alias->isWrite()) found.mutates = true;
      else reads_alias = true;
    }
  for (auto tag : op.getTags()) {
    if (tag == at::Tag::data_dependent_output || tag == at::Tag::dynamic_output_shape) found.dynamic = true;
    if (tag == at::Tag::nondeterministic_seeded) found.random = true;
  }
  found.counted = any_of(name, {"aten::nonzero", "aten::_unique2", "aten::unique_consecutive"});
  found.spread = any_of(name, {"aten::topk", "aten::argmax", "aten::max"});
  const bool is_out = schema.overload_name().find("out") != std::string::npos && found.mutates;
  found.writes_only = is_out || any_of(name, {"aten::copy_", "aten::fill_", "aten::zero_", "aten::normal_", "aten::uniform_",
      "aten::random_", "aten::bernoulli_", "aten::exponential_", "aten::cauchy_", "aten::log_normal_", "aten::geometric_"});
  if (name.rfind("c10d::", 0) == 0) return found; /* what other ranks send, nobody here knows */
  const bool is_empty = name.rfind("aten::empty", 0) == 0 || name.rfind("aten::new_empty", 0) == 0;
  if (is_empty || any_of(name, {"aten::resize_", "aten::set_", "aten::record_stream", "aten::_pin_memory", "aten::is_pinned",
      "aten::_cudnn_rnn_flatten_weight"}))
    return found;
  if (name == "aten::copy_") found.kind = Kind::copy;
  else if (name == "aten::_local_scalar_dense") found.kind = Kind::read;
  else if (reads_alias && !found.mutates) found.kind = Kind::pass; /* a view */
  /* Composites come apart by themselves; these two do not, into parts that the CPU would have. */
  else if (any_of(name, {"aten::convolution", "aten::convolution_backward"}) || op.hasKernelForDispatchKey(DispatchKey::CUDA))
    found.kind = Kind::compute;
  found.refused = !op.hasComputedKernelForDispatchKey(DispatchKey::CPU);
  found.widens = any_of(name, {"aten::_softmax", "aten::_log_softmax"}) && !is_out;
  return found;
}

Operator &known(const c10::OperatorHandle &op) {
  thread_local std::unordered_map<const void *, Operator> table;
  const void *key = &op.schema();
  auto at = table.find(key);
  return at == table.end() ? table.emplace(key, look_at(op)).first->second : at->second;
}

/* ---- tensors */

enum class Place { host, device, foreign };

Place place_of(const at::Tensor &tensor) {
  if (!tensor.defined()) return Place::host;
  auto keys = tensor.key_set();
  if (keys.has(DispatchKey::Python) || tensor.layout() != c10::kStrided || tensor.is_quantized() || tensor.is_nested())
    return Place::foreign;
  if (keys.has_backend(c10::BackendComponent::CUDABit)) /* a fake one may have CUDA's keys, and no memory */
    return tensor.has_storage() && tensor.storage().device().is_cuda() ? Place::device : Place::foreign;
  return keys.has_backend(c10::BackendComponent::CPUBit) ? Place::host : Place::foreign;
}

bool is_number(const at::Tensor &tensor) { return tensor.is_floating_point() || tensor.is_complex(); }

bool is_small(const at::Tensor &tensor) {
  auto limit = is_number(tensor) ? settings.floats : settings.integers;
  return static_cast<int64_t>(tensor.nbytes()) <= limit;
}

at::Tensor host_view(const at::Tensor &tensor) {
  auto options = at::TensorOptions().dtype(tensor.dtype()).device(at::kCPU);
  if (!tensor.numel()) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), options);
}

template <class Visit> void each_tensor(const c10::IValue &value, Visit visit) {
  if (value.isTensor()) visit(value.toTensor());
  else if (value.isTensorList())
    for (const at::Tensor &each : value.toTensorList()) visit(each);
  else if (value.isList())
    for (const c10::IValue &each : value.toListRef())
      if (each.isTensor()) visit(each.toTensor());
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
  uint64_t seed = generator.current_seed() + 0x9E3779B97F4A7C15ull * (generator.get_offset() + 1);
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

c10::IValue for_host(const c10::IValue &value, const at::Generator &generator) {
  if (value.isTensor()) {
    const auto &tensor = value.toTensor();
    return place_of(tensor) == Place::device ? c10::IValue(host_view(tensor)) : value;
  }
  if (value.isTensorList()) {
    c10::List<at::Tensor> views;
    for (const at::Tensor &each : value.toTensorList()) views.push_back(place_of(each) == Place::device ? host_view(each) : each);
    return views;
  }
  if (value.isList() && !value.toListRef().empty()) {
    auto list = value.toList().copy();
    for (size_t i = 0; i < list.size(); i++) {
      c10::IValue each = list.get(i);
      if (each.isTensor() && place_of(each.toTensor()) == Place::device) list.set(i, host_view(each.toTensor()));
    }
    return list;
  }
  if (value.isDevice() && value.toDevice().is_cuda()) return c10::Device(at::kCPU);
  if (value.isGenerator() && generator.defined()) return generator;
  return value;
}

/* Runs the CPU's kernel; false if there is none for this. */
bool compute(const c10::OperatorHandle &op, Operator &known, Stack &host, std::optional<uint64_t> seed) {
  OnHost guard;
  at::Generator shared = at::detail::getDefaultCPUGenerator();
  at::Tensor before;
  try {
    if (seed) {
      std::lock_guard<std::mutex> lock(shared.mutex());
      before = shared.get_state();
      shared.set_current_seed(*seed);
    }
    op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), &host);
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

/* Of a result that was not computed: zeros where somebody might look; a router's choices go round. */
void leave_uncomputed(const Operator &known, const at::Tensor &result, int64_t among) {
  const auto size = static_cast<int64_t>(result.nbytes());
  if (!size || size > (is_number(result) ? std::min<int64_t>(settings.floats, 4096) : settings.integers)) return;
  if (known.spread && !is_number(result) && among > 1 && among <= 512) {
    OnHost guard;
    auto view = host_view(result);
    view.copy_(at::arange(result.numel(), view.options().dtype(at::kLong)).remainder_(among).view(result.sizes()));
    remember(result, true); /* from here on it counts as chosen */
  } else if (result.is_non_overlapping_and_dense()) std::memset(result.data_ptr(), 0, static_cast<size_t>(size));
}

int64_t choices(const Operator &known, at::ArrayRef<c10::IValue> arguments) {
  if (!known.spread || !arguments[0].isTensor()) return 0;
  const auto &from = arguments[0].toTensor();
  if (!from.dim()) return 0;
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
  bool gives;
  Answer(bool gives, long long number) : gives(gives) { if (gives) answering = true, vgpu_answer(&number, 1); }
  ~Answer() { if (gives) answering = false, vgpu_answer(nullptr, 0); }
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
  if (what.widens && host[2].toBool()) host[0] = host[0].toTensor().to(at::kFloat), host[2] = false;
  return host;
}

void tell(const Operator &known) { if (settings.told) settings.told(known.name.c_str()); }

void fallback(const c10::OperatorHandle &op, DispatchKeySet keys, Stack *stack) {
  if (!settings.on) return pass_on(op, keys, stack);
  Operator &what = known(op);
  if (what.kind == Kind::pass || (inside && !what.dynamic)) return pass_on(op, keys, stack);

  const size_t count = op.schema().arguments().size();
  auto arguments = at::ArrayRef<c10::IValue>(stack->data() + stack->size() - count, count);
  bool foreign = false, fits = true, known_inputs = true, on_device = false, on_host = false;
  std::optional<at::Tensor> some;
  c10::Device device(at::kCPU);
  const auto &schema_arguments = op.schema().arguments();
  for (size_t i = 0; i < count; i++) {
    const bool written = schema_arguments[i].alias_info() && schema_arguments[i].alias_info()->isWrite();
    if (arguments[i].isDevice()) device = arguments[i].toDevice();
    each_tensor(arguments[i], [&](const at::Tensor &each) {
      auto place = place_of(each);
      if (place == Place::foreign) foreign = true;
      if (place == Place::host) on_host = true;
      if (place != Place::device) return;
      on_device = true;
      if (!some) some = each;
      fits = fits && is_small(each);
      if (known_inputs && !(written && what.writes_only) && !is_computed(each)) known_inputs = false;
    });
  }
  if (what.kind == Kind::copy && on_host && on_device) fits = static_cast<int64_t>(some->nbytes()) <= settings.copies;
  if (foreign || !(on_device || device.is_cuda())) return pass_on(op, keys, stack);
  if (!known_inputs && what.dynamic && !answering && (what.kind != Kind::read || !is_number(*some))) tell(what);
  if (what.kind == Kind::read) {
    const auto zero = zero_of(some->scalar_type());
    pass_on(op, keys, stack);
    if (!known_inputs) stack->back() = zero;
    return;
  }
  if (!fits || what.refused || !known_inputs) { /* what would come of leftovers is nobody's: a scaler might skip its step */
    const auto among = choices(what, arguments);
    {
      Answer none(what.counted, 0);
      pass_on(op, keys, stack);
    }
    each_result(op, stack, [&](size_t, c10::IValue &result, bool written) {
      each_tensor(result, [&](const at::Tensor &each) {
        if (!known_inputs && what.kind == Kind::copy && place_of(each) == Place::host && each.is_non_overlapping_and_dense())
          std::memset(each.data_ptr(), 0, each.nbytes());
        if (place_of(each) != Place::device || !each.numel()) return;
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
  Stack host;
  if (what.dynamic && !what.mutates) { /* how many there are has to be known before the kernel asks */
    host = for_host(what, arguments, generator);
    done = compute(op, what, host, seed);
    long long number = 0;
    if (done) each_tensor(host.front(), [&](const at::Tensor &each) { number = each.dim() ? each.size(0) : each.numel(); });
    Answer count(what.counted, number);
    pass_on(op, keys, stack); /* what it calls inside finds its own values */
  } else {
    const Stack given = arguments.vec();
    {
      Inside guard(what.mutates);
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
      if (done && !written && j < twins.size() && twins[j].defined()) {
        OnHost guard;
        if (twins[j].sizes() != each.sizes() && what.dynamic && result.isTensor()) {
          each = at::empty(twins[j].sizes(), each.options()); /* its kernel asked in a way that is not known here */
          result = each;
        }
        if (each.scalar_type() == at::kByte && each.dim() == 1 && twins[j].dim() == 1 && twins[j].numel() < each.numel())
          host_view(each).narrow(0, 0, twins[j].numel()).copy_(twins[j]); /* a reserve space is its kernel's own affair */
        else if (twins[j].sizes() == each.sizes() && each.numel()) host_view(each).copy_(twins[j]);
      }
      if (!each.numel()) continue;
      remember(each, done); /* what the two kernels keep in other shapes is nobody else's */
      if (!written && !done) leave_uncomputed(what, each, among);
    }
  });
}

TORCH_LIBRARY_IMPL(_, Fake, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

/* Operators that are nobody's business here cost nothing when they are called. */
void leave_out(void) {
  static torch::Library library(torch::Library::IMPL, "aten", HERE, __FILE__, __LINE__);
  auto &dispatcher = c10::Dispatcher::singleton();
  for (const auto &name : dispatcher.getAllOpNames()) {
    if (name.name.rfind("aten::", 0) != 0) continue;
    auto op = dispatcher.findOp(name);
    if (!op || op->hasKernelForDispatchKey(HERE) || look_at(*op).kind != Kind::pass) continue;
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

/* Sizes are bytes; told gets the operator that takes a size from what was not computed. */
API void values_begin(int64_t floats, int64_t integers, int64_t copies, void (*told)(const char *)) {
  settings.floats = floats, settings.integers = integers, settings.copies = copies, settings.told = told;
  settings.on = true;
  include();
  vgpu_each_thread(include);
}
