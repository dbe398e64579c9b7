"""Operators that need no rule: their kernels on CUDA take their results, in order, and nothing else. Names only.

Pointwise operators and views are not in it: torch says itself which they are.
"""

from __future__ import annotations

PLAIN = frozenset({
    "_adaptive_avg_pool2d", "_adaptive_avg_pool2d_backward", "_amp_foreach_non_finite_check_and_unscale_",
    "_amp_update_scale_", "_fused_adagrad_", "_fused_adam_", "_fused_adamw_", "_fused_sgd_", "_prelu_kernel",
    "_prelu_kernel_backward", "_scaled_dot_product_flash_attention", "_to_copy", "_unsafe_view",
    "adaptive_max_pool2d", "arange", "avg_pool2d", "bernoulli_", "binary_cross_entropy_backward",
    "binary_cross_entropy_with_logits", "cat", "channel_shuffle", "clone", "constant_pad_nd", "contiguous", "copy_",
    "cudnn_batch_norm", "cudnn_batch_norm_backward", "detach", "diagonal_backward", "elu_backward", "embedding",
    "empty", "empty_like", "empty_strided", "expand", "eye", "fill_", "flip", "full", "full_like", "gather",
    "gelu_backward", "glu", "glu_backward", "hardsigmoid_backward", "hardswish_", "hardswish_backward",
    "hardtanh_backward", "huber_loss_backward", "im2col", "index_add", "index_add_", "index_select", "is_same_size",
    "leaky_relu_backward", "lift_fresh", "linspace", "log_sigmoid_backward", "log_sigmoid_forward",
    "logit_backward", "masked_fill_", "max_pool2d_with_indices", "mish_backward", "mse_loss_backward",
    "native_batch_norm_backward", "native_dropout_backward", "new_empty", "new_empty_strided", "new_full",
    "new_ones", "new_zeros", "nll_loss2d_backward", "nll_loss2d_forward", "nll_loss_backward", "nll_loss_forward",
    "normal_", "one_hot", "ones", "ones_like", "pixel_shuffle", "pixel_unshuffle", "rand", "rand_like", "randint",
    "randn", "randn_like", "random_", "record_stream", "reflection_pad2d", "repeat", "resize_", "roll",
    "scalar_tensor", "scatter", "scatter_", "scatter_add", "scatter_add_", "select_backward", "select_scatter",
    "set_", "sigmoid_backward", "silu_backward", "slice_backward", "slice_scatter", "smooth_l1_loss_backward",
    "softplus_backward", "stack", "tanh_backward", "threshold_backward", "tril", "triu", "unfold_backward",
    "uniform_", "upsample_bicubic2d", "upsample_bilinear2d", "upsample_nearest2d", "zero_", "zeros", "zeros_like",
})  # fmt: skip
"""Without their overloads."""
