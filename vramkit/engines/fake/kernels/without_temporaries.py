"""Operators that need no rule: their kernels on CUDA take their results, in order, and nothing else. Names only.

Pointwise operators and views are not in it: torch says itself which they are.
"""

from __future__ import annotations

WITHOUT_TEMPORARIES = frozenset({
    "_adaptive_avg_pool2d", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d", "_adaptive_avg_pool3d_backward",
    "_amp_foreach_non_finite_check_and_unscale_", "_amp_update_scale_", "_cdist_forward",
    "_embedding_bag_per_sample_weights_backward", "_fused_adagrad_", "_fused_adam_", "_fused_adamw_", "_fused_sgd_",
    "_pdist_forward", "_prelu_kernel", "_prelu_kernel_backward", "_standard_gamma", "_standard_gamma_grad",
    "_thnn_fused_gru_cell_backward", "_thnn_fused_lstm_cell_backward_impl", "_to_copy", "_unsafe_view",
    "_upsample_nearest_exact2d", "_weight_norm_interface", "_weight_norm_interface_backward",
    "adaptive_max_pool3d", "adaptive_max_pool3d_backward", "addr", "arange",
    "as_strided_", "avg_pool2d", "avg_pool3d", "avg_pool3d_backward", "bernoulli_", "binary_cross_entropy_backward",
    "binomial", "cat", "cauchy_", "channel_shuffle", "clone", "constant_pad_nd", "contiguous", "copy_",
    "cummax", "cummin", "detach", "diag_embed", "diagonal_backward",
    "diagonal_copy", "elu_backward", "embedding", "empty", "empty_like", "empty_strided", "expand", "exponential_",
    "eye", "fill_", "flip", "fractional_max_pool2d", "fractional_max_pool2d_backward", "full", "full_like", "gather",
    "gelu_backward", "geometric_", "glu", "glu_backward", "grid_sampler_2d", "grid_sampler_2d_backward",
    "grid_sampler_3d", "grid_sampler_3d_backward", "hardshrink_backward", "hardsigmoid_backward", "hardswish_",
    "hardswish_backward", "hardtanh_backward", "huber_loss_backward", "index_add", "index_add_", "index_copy",
    "index_copy_", "index_fill", "index_fill_", "index_select", "is_same_size", "leaky_relu_backward",
    "lift_fresh", "linalg_cross", "linspace", "log_normal_", "log_sigmoid_backward", "log_sigmoid_forward",
    "logit_backward", "masked_fill_", "max_pool2d_with_indices", "max_pool3d_with_indices",
    "max_pool3d_with_indices_backward", "max_unpool3d", "mish_backward", "mse_loss_backward",
    "multi_margin_loss_backward", "multilabel_margin_loss_backward", "native_dropout_backward", "new_empty",
    "new_empty_strided", "new_full", "new_ones", "new_zeros", "nll_loss2d_backward", "nll_loss_backward",
    "nll_loss_forward", "normal_", "one_hot", "ones", "ones_like", "pixel_shuffle", "pixel_unshuffle", "poisson",
    "polar", "put", "put_", "rand", "rand_like", "randint", "randn", "randn_like", "random_", "record_stream",
    "reflection_pad1d", "reflection_pad1d_backward", "reflection_pad3d", "reflection_pad3d_backward", "repeat",
    "replication_pad1d", "replication_pad1d_backward", "replication_pad2d", "replication_pad2d_backward",
    "replication_pad3d", "replication_pad3d_backward", "resize_", "rrelu_with_noise", "rrelu_with_noise_backward",
    "scalar_tensor", "scatter", "scatter_", "scatter_add", "scatter_add_", "select_backward", "select_scatter", "set_",
    "sigmoid_backward", "silu_backward", "slice_backward", "slice_scatter", "smooth_l1_loss_backward",
    "softplus_backward", "softshrink_backward", "squeeze_", "stack", "take", "tanh_backward", "threshold_backward",
    "transpose_", "tril", "triu", "uniform_", "unsqueeze_", "upsample_bicubic2d", "upsample_bilinear2d",
    "upsample_linear1d", "upsample_nearest2d", "upsample_trilinear3d",
    "vdot", "zero_", "zeros", "zeros_like",
})  # fmt: skip
"""Without their overloads."""
