/* Arguments of operators that the CPU's kernel wants otherwise than CUDA's: what CUDA's does not keep for the backward,
 * and what it can do that the CPU's can't. It knows the arguments of these operators, no devices. */
#pragma once
#include <ATen/Functions.h>
#include <ATen/core/stack.h>

#include <string>

namespace {

using Adapt = void (*)(torch::jit::Stack &arguments);

/* May return float32 of a half. */
void adapt_softmax(torch::jit::Stack &arguments) {
  if (arguments[2].toBool()) arguments[0] = arguments[0].toTensor().to(at::kFloat), arguments[2] = false;
}

/* The CPU sums on a fast path that does not say which bag each index is in, unless an index is padding: here none is. */
void adapt_bags(torch::jit::Stack &arguments) {
  if (arguments[8].toInt() < 0) arguments[8] = arguments[0].toTensor().size(0);
}

/* CUDA's keeps no exp(-|x|). */
void adapt_log_sigmoid(torch::jit::Stack &arguments) { arguments[2] = arguments[1].toTensor().abs().neg().exp(); }

Adapt adapt_for(const std::string &name, bool is_out) {
  if (is_out) return nullptr;
  if (name == "aten::_softmax" || name == "aten::_log_softmax") return adapt_softmax;
  if (name == "aten::_embedding_bag" || name == "aten::_embedding_bag_forward_only") return adapt_bags;
  return name == "aten::log_sigmoid_backward" ? adapt_log_sigmoid : nullptr;
}

} // namespace
