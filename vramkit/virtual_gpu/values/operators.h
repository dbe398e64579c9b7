/* Which of torch's operators are seen on their way to a device, and what has to be known of each. It knows schemas and
 * names, no tensors. */
#pragma once
#include "adapted.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <string>
#include <unordered_map>

namespace {

using c10::DispatchKey;

enum class Kind { pass, compute, copy, read, exchange };

struct Operator {
  Kind kind = Kind::pass;
  bool dynamic = false;  /* the sizes of its results depend on values */
  bool tells = false;    /* and whoever they come of is told */
  bool by_flags = false; /* on those of flags alone */
  bool by_counts = false; /* on those of whole numbers and flags */
  bool counted = false;  /* its kernel copies the number of its results to the host */
  bool mutates = false;  /* writes to its arguments */
  bool writes_only = false; /* and reads nothing of what it writes to */
  bool fills = false;       /* with one number */
  bool random = false;
  bool spread = false;   /* picks the largest: a router's choice, where it was not computed */
  bool refused = false;  /* the CPU's kernel is not there, or failed for want of one */
  bool sparse = false;   /* makes or takes sparse tensors, and comes apart into operators that are computed themselves */
  bool checks = false;   /* what its kernel reads only says whether it was given what it can take, and succeeded */
  bool apart = false;    /* what its kernel reads of its own operators' results decides how it goes on */
  bool keeps = false;    /* its CPU kernel is a twin, whose backward reads nothing that the two keep in other shapes */
  Adapt adapt = nullptr;
  std::string name;
};

bool any_of(const std::string &name, std::initializer_list<const char *> names) {
  for (auto each : names)
    if (name == each) return true;
  return false;
}

bool has_kernel(const c10::OperatorHandle &op, std::initializer_list<DispatchKey> keys) {
  for (auto key : keys)
    if (op.hasKernelForDispatchKey(key)) return true;
  return false;
}

Operator look_at(const c10::OperatorHandle &op) {
  Operator found;
  if (!op.hasSchema()) return found;
  const auto &schema = op.schema();
  const std::string &name = found.name = schema.name();
  bool reads_alias = false, is_out = false;
  for (const auto &argument : schema.arguments())
    if (const auto *alias = argument.alias_info()) {
      if (alias->isWrite()) found.mutates = true, is_out = is_out || argument.kwarg_only();
      else reads_alias = true;
    }
  for (auto tag : op.getTags()) {
    if (tag == at::Tag::data_dependent_output || tag == at::Tag::dynamic_output_shape) found.dynamic = true;
    if (tag == at::Tag::nondeterministic_seeded) found.random = true;
  }
  found.counted = any_of(name, {"aten::nonzero", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::_coalesce"});
  found.tells = found.dynamic && name != "aten::equal"; /* which only says yes or no */
  found.by_counts = any_of(name, {"aten::_ctc_loss", "aten::_coalesce"});
  found.by_flags = name.rfind("aten::index", 0) == 0 || name.rfind("aten::masked", 0) == 0;
  /* The latter two: what a distribution checks, and normal of its deviations, up to torch 2.11 or so. */
  found.checks = any_of(name, {"aten::segment_reduce", "aten::_is_all_true", "aten::normal"});
  for (auto each : {"aten::linalg_", "aten::_linalg_"}) found.checks = found.checks || name.rfind(each, 0) == 0;
  found.sparse = name.find("sparse") != std::string::npos;
  found.spread = any_of(name, {"aten::topk", "aten::argmax", "aten::max", "aten::multinomial"});
  found.writes_only = is_out || any_of(name, {"aten::copy_", "aten::fill_", "aten::zero_", "aten::normal_", "aten::uniform_",
      "aten::random_", "aten::bernoulli_", "aten::exponential_", "aten::cauchy_", "aten::log_normal_", "aten::geometric_",
      "aten::_cummax_helper", "aten::_cummin_helper"});
  found.fills = name == "aten::fill_";
  if (name.rfind("c10d::", 0) == 0) {
    found.kind = Kind::exchange;
    return found;
  }
  const bool is_empty = name.rfind("aten::empty", 0) == 0 || name.rfind("aten::new_empty", 0) == 0;
  if (is_empty || any_of(name, {"aten::resize_", "aten::set_", "aten::record_stream", "aten::_pin_memory", "aten::is_pinned",
      "aten::_cudnn_rnn_flatten_weight"}))
    return found;
  if (name == "aten::copy_") found.kind = Kind::copy;
  else if (name == "aten::_local_scalar_dense") found.kind = Kind::read;
  else if (reads_alias && !found.mutates) found.kind = Kind::pass; /* a view */
  /* Composites come apart by themselves; these two do not, into parts that the CPU would have. */
  else if (any_of(name, {"aten::convolution", "aten::convolution_backward"}) || has_kernel(op, {DispatchKey::CUDA,
      DispatchKey::SparseCUDA, DispatchKey::SparseCsrCUDA}))
    found.kind = Kind::compute;
  found.refused = !op.hasComputedKernelForDispatchKey(DispatchKey::CPU) && !has_kernel(op, {DispatchKey::SparseCPU, DispatchKey::SparseCsrCPU});
  found.apart = name == "aten::linalg_matrix_exp";
  for (auto each : {"aten::_cudnn", "aten::cudnn", "aten::_scaled_dot_product"})
    found.keeps = found.keeps || name.rfind(each, 0) == 0;
  found.adapt = adapt_for(name, is_out);
  return found;
}

Operator &known(const c10::OperatorHandle &op) {
  thread_local std::unordered_map<const void *, Operator> table;
  const void *key = &op.schema();
  auto at = table.find(key);
  return at == table.end() ? table.emplace(key, look_at(op)).first->second : at->second;
}

} // namespace
