"""aten's operators with a private name, which kernel rules and the overlay name as they are; and torch's samples.

Knows which there are; what they do, the rules know. Imported only where an operator is to run on fakes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch.backends

from .names import look_up, reader_of

PRIVATE = (
    "_addmm_activation",
    "_batch_norm_impl_index",
    "_cdist_backward",
    "_cudnn_rnn",
    "_cudnn_rnn_backward",
    "_embedding_bag",
    "_embedding_bag_backward",
    "_embedding_bag_forward_only",
    "_euclidean_dist",
    "_foreach_max",
    "_foreach_norm",
    "_fused_adagrad_",
    "_fused_rms_norm",
    "_fused_sgd_",
    "_index_put_impl_",
    "_is_all_true",
    "_is_any_true",
    "_log_softmax",
    "_log_softmax_backward_data",
    "_native_multi_head_attention",
    "_nested_tensor_from_mask",
    "_nested_tensor_from_mask_left_aligned",
    "_pdist_backward",
    "_safe_softmax",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_cudnn_attention_backward",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_efficient_attention_backward",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_backward",
    "_softmax",
    "_softmax_backward_data",
    "_thnn_fused_gru_cell",
    "_thnn_fused_gru_cell_backward",
    "_thnn_fused_lstm_cell",
    "_transformer_encoder_layer_fwd",
    "_trilinear",
    "_upsample_nearest_exact1d",
    "_upsample_nearest_exact1d_backward",
    "_upsample_nearest_exact2d_backward",
    "_upsample_nearest_exact3d",
    "_upsample_nearest_exact3d_backward",
)
"""Those that are looked up as ``torch.ops.aten._x`` beyond this room."""

for _name in PRIVATE:
    look_up(f"torch.ops.aten.{_name}", "fake engine")

fused_rms_norm_backward: Any | None = look_up(
    "torch.ops.aten._fused_rms_norm_backward", "fake engine", versions="2.9 to 2.14", fallback=None
)
"""What CUDA calls for ``rms_norm`` in a backward; in a torch without it, ``rms_norm`` is made of other operators."""

local_scalar: Any = look_up("torch.ops.aten._local_scalar_dense.default", "fake engine")
"""What ``tensor.item()`` is to a dispatch mode."""

holds_everywhere: Any = look_up("torch.ops.aten._is_all_true.default", "fake engine")
"""What torch's distributions ask of the values that they check."""

schema_of: Callable[[Any], Any] = reader_of("torch.ops.aten.add.Tensor._schema", "fake engine")
"""What an overload of an operator says of its arguments."""

has_kernel: Callable[[str], bool] = look_up("torch._C._dispatch_has_kernel", "fake engine")
"""Whether an operator, by its full name, has any kernel; what is TorchScript's alone has none."""

has_kernel_of_key: Callable[[str, str], bool] = look_up("torch._C._dispatch_has_kernel_for_dispatch_key", "fake engine")
"""The same, of a dispatch key."""


def operator_samples() -> Sequence[Any]:
    """Every operator with the calls of it that torch tests by; needs ``expecttest``."""
    # Importing them would forbid the whole process to set flags of torch.backends.
    with patch.object(torch.backends, "disable_global_flags", lambda: None):
        found: Sequence[Any] = look_up("torch.testing._internal.common_methods_invocations.op_db", "developers' tools")
    return found
