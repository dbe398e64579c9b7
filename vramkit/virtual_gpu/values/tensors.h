/* Where a tensor lies, and the same memory as a tensor of the CPU. It knows layouts, sparse ones among them; what was
 * computed it does not know. */
#pragma once
#include <ATen/Functions.h>
#include <ATen/SparseCsrTensorImpl.h>
#include <ATen/SparseCsrTensorUtils.h>
#include <ATen/SparseTensorImpl.h>

#include <vector>

namespace {

using c10::DispatchKey;

/* Of a subclass in Python even the layout may be asked of Python. */
bool is_sparse(const at::Tensor &tensor) {
  return tensor.defined() && !tensor.key_set().has(DispatchKey::Python) && tensor.layout() != c10::kStrided &&
      (tensor.layout() == c10::kSparse || at::sparse_csr::is_sparse_compressed(tensor));
}
bool is_coo(const at::Tensor &sparse) { return sparse.layout() == c10::kSparse; }

/* The strided tensors that a sparse one is made of, without an operator that would be seen. */
std::vector<at::Tensor> parts_of(const at::Tensor &tensor) {
  if (is_coo(tensor)) {
    auto *impl = static_cast<at::SparseTensorImpl *>(tensor.unsafeGetTensorImpl());
    return {impl->indices(), impl->values()};
  }
  auto *impl = static_cast<at::SparseCsrTensorImpl *>(tensor.unsafeGetTensorImpl());
  return {impl->compressed_indices(), impl->plain_indices(), impl->values()};
}
bool is_coalesced(const at::Tensor &tensor) {
  return static_cast<at::SparseTensorImpl *>(tensor.unsafeGetTensorImpl())->coalesced();
}

enum class Place { host, device, foreign };

Place place_of(const at::Tensor &tensor) {
  if (!tensor.defined() || tensor._is_zerotensor()) return Place::host; /* zeros without memory, as gradients may be */
  auto keys = tensor.key_set();
  if (keys.has(DispatchKey::Python) || tensor.is_quantized() || tensor.is_nested()) return Place::foreign;
  if (is_sparse(tensor)) return tensor.device().is_cuda() ? Place::device : tensor.is_cpu() ? Place::host : Place::foreign;
  if (tensor.layout() != c10::kStrided) return Place::foreign;
  if (keys.has_backend(c10::BackendComponent::CUDABit)) /* a fake one may have CUDA's keys, and no memory */
    return tensor.has_storage() && tensor.storage().device().is_cuda() ? Place::device : Place::foreign;
  return keys.has_backend(c10::BackendComponent::CPUBit) ? Place::host : Place::foreign;
}

bool is_number(const at::Tensor &tensor) { return tensor.is_floating_point() || tensor.is_complex(); }

/* A whole number, which may become a size; a flag is none. */
bool is_count(const at::Tensor &tensor) { return !is_number(tensor) && tensor.scalar_type() != at::kBool; }

bool is_flag(const at::Tensor &tensor) { return tensor.defined() && (tensor.scalar_type() == at::kBool || tensor.scalar_type() == at::kByte); }

at::Tensor host_view(const at::Tensor &tensor);

/* Of views of its parts; below autograd, with nothing to be seen. */
at::Tensor sparse_host_view(const at::Tensor &tensor) {
  auto parts = parts_of(tensor);
  for (auto &each : parts) each = host_view(each);
  auto options = parts.back().options().layout(tensor.layout());
  if (!is_coo(tensor)) return at::_sparse_compressed_tensor_unsafe(parts[0], parts[1], parts[2], tensor.sizes(), options);
  return at::_sparse_coo_tensor_unsafe(parts[0], parts[1], tensor.sizes(), options)._coalesced_(is_coalesced(tensor));
}

at::Tensor host_view(const at::Tensor &tensor) {
  if (is_sparse(tensor)) return sparse_host_view(tensor);
  auto options = at::TensorOptions().dtype(tensor.dtype()).device(at::kCPU);
  if (tensor._is_zerotensor()) return at::zeros(tensor.sizes(), options);
  if (!tensor.numel()) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  auto view = at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), options);
  view._set_conj(tensor.is_conj()); /* lazy, and some operators take them so */
  view._set_neg(tensor.is_neg());
  return view;
}

/* Sparse ones by their parts. */
template <class Visit> void each_part(const at::Tensor &tensor, Visit visit) {
  if (!is_sparse(tensor)) return visit(tensor);
  for (const at::Tensor &each : parts_of(tensor)) visit(each);
}
template <class Visit> void each_tensor(const c10::IValue &value, Visit visit) {
  if (value.isTensor()) each_part(value.toTensor(), visit);
  else if (value.isTensorList())
    for (const at::Tensor &each : value.toTensorList()) each_part(each, visit);
  else if (value.isList())
    for (const c10::IValue &each : value.toListRef()) each_tensor(each, visit);
}

} // namespace
