"""Layers that are other operators on CUDA than elsewhere: dropout, norms, softmax, convolutions. Knows which; nothing
of attention, recurrence or autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from ....torch_internals.fakes import memory_format_of
from ....torch_internals.operators import fused_rms_norm_backward
from .patches import Kernels, put

aten = torch.ops.aten


def install(kernels: Kernels, stack: ExitStack) -> None:
    """Replace them."""
    for operator in (aten.silu_backward.default, aten.mish_backward.default):
        kernels.exists(operator)
    if fused_rms_norm_backward is not None:
        kernels.exists(aten._fused_rms_norm.default)
    kernels.composite(aten.dropout.default, _dropout)
    kernels.composite(aten._batch_norm_impl_index.default, _batch_norm)
    for operator, kernel in ((aten.softmax.int, aten._softmax), (aten.log_softmax.int, aten._log_softmax)):
        kernels.composite(operator, _softmax_by(kernel))
    put(stack, torch._C, "_conv_determine_backend_memory_format", _convolution_format)


def _dropout(tensor: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    if train and 0 < p < 1 and tensor.numel():
        kept: torch.Tensor = aten.native_dropout(tensor, p, True)[0]
        return kept
    if not train or p == 0 or not tensor.numel():
        return tensor
    return tensor * torch.zeros((), dtype=tensor.dtype, device=tensor.device)


def _batch_norm(
    tensor: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor | None,
    variance: torch.Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> tuple[Any, ...]:
    if cudnn_enabled and torch.backends.cudnn.enabled and _is_for_cudnn(tensor, weight, bias, mean, variance, training):
        memory = memory_format_of(tensor)
        assert weight is not None
        out = aten.cudnn_batch_norm(
            tensor.contiguous(memory_format=memory),
            weight.contiguous(),
            None if bias is None else bias.contiguous(),
            None if mean is None else mean.contiguous(),
            None if variance is None else variance.contiguous(),
            training,
            momentum,
            eps,
        )
        return (*out, 1)
    reserve = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return (*aten.native_batch_norm(tensor, weight, bias, mean, variance, training, momentum, eps), reserve, 0)


def _is_for_cudnn(
    tensor: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor | None,
    variance: torch.Tensor | None,
    training: bool,
) -> bool:
    """ATen's conditions, in ``Normalization.cpp``."""
    if weight is None or bias is None or torch.bfloat16 in (tensor.dtype, weight.dtype):
        return False
    if tensor.dtype is torch.float16 and weight.dtype is not torch.float32:
        return False
    if (mean is None or variance is None) and not (mean is None and variance is None and training):
        return False
    return tensor.dim() >= 3 and len(tensor) <= (880_801 if training else 65_535)


def _softmax_by(kernel: Any) -> Callable[..., torch.Tensor]:
    def softmax(tensor: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        if tensor.dtype is torch.float16 and dtype is torch.float32:
            return kernel(tensor, dim, True)  # type: ignore[no-any-return] # an operator
        return kernel(tensor if dtype is None else tensor.to(dtype), dim, False)  # type: ignore[no-any-return]

    return softmax


def _convolution_format(data: torch.Tensor, weight: torch.Tensor, backend: object) -> torch.memory_format:
    """How a convolution's result lies in memory: channels last if its input or its weight does."""
    formats = {memory_format_of(each) for each in (data, weight)}
    for last in (torch.channels_last, torch.channels_last_3d):
        if last in formats and data.dtype is not torch.float64:
            return last
    return torch.contiguous_format
