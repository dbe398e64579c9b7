"""Pooling, upsampling, padding and windows as columns: copies of what a kernel can't read as it lies."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .call import Call
from .copies import copies
from .registry import rule

aten = torch.ops.aten


def _in_order_of(like: torch.Tensor, tensor: torch.Tensor) -> list[int]:
    """Bytes of a tensor's copy unless it is in the order of another: contiguous, or with the channels last."""
    is_last = like.dim() == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
    return [] if is_last and tensor.is_contiguous(memory_format=torch.channels_last) else copies(tensor)


@rule(aten.max_pool2d_with_indices_backward, aten.avg_pool2d_backward)
def pool_backward(call: Call, grad_output: torch.Tensor, self: torch.Tensor) -> None:
    """The result, then a copy of the gradient unless it is in the order of the input."""
    call.output()
    call.touch(*_in_order_of(self, grad_output))


@rule(
    aten.upsample_nearest2d_backward,
    aten._upsample_nearest_exact2d_backward,
    aten.upsample_bilinear2d_backward,
    aten.reflection_pad2d_backward,
)
def window_backward(call: Call, grad_output: torch.Tensor) -> None:
    """The result, then a copy of the gradient unless it is contiguous or has its channels last."""
    call.output()
    call.touch(*_in_order_of(grad_output, grad_output))


@rule(
    aten.upsample_bicubic2d_backward,
    aten.upsample_linear1d_backward,
    aten.upsample_trilinear3d_backward,
    aten.upsample_nearest1d_backward,
    aten.upsample_nearest3d_backward,
    aten._upsample_nearest_exact1d_backward,
    aten._upsample_nearest_exact3d_backward,
)
def contiguous_backward(call: Call, grad_output: torch.Tensor) -> None:
    """The result, then a copy of the gradient unless it is contiguous."""
    call.output()
    call.touch(*copies(grad_output))


@rule(
    aten.upsample_nearest1d,
    aten.upsample_nearest3d,
    aten._upsample_nearest_exact1d,
    aten._upsample_nearest_exact3d,
)
def nearest(call: Call, self: torch.Tensor) -> None:
    """The result, then result and input in the order that the kernel knows."""
    call.output()
    call.touch_together(*copies(call.result, self))


@rule(aten.reflection_pad2d)
def reflect(call: Call, self: torch.Tensor) -> None:
    """The result, then a copy of the input unless it is contiguous."""
    call.output()
    call.touch(*copies(self))


@rule(aten.adaptive_max_pool2d)
def adaptive_max(call: Call, self: torch.Tensor) -> None:
    """The results, then the same and the input in the order that the kernel knows."""
    call.output(0)
    call.output(1)
    call.touch_together(*copies(*call.result, self))


@rule(aten.adaptive_max_pool2d_backward)
def adaptive_max_backward(call: Call, grad_output: torch.Tensor, indices: torch.Tensor) -> None:
    """The result, then gradient, places and result in the order that the kernel knows."""
    call.output()
    call.touch_together(*copies(grad_output, indices, call.result))


@rule(aten.im2col)
def columns(call: Call, self: torch.Tensor) -> None:
    """A result as large as the input, which is then resized; a copy of the input unless it is contiguous."""
    with call.holding(self.nbytes, *copies(self)):
        call.output()


@rule(aten.col2im)
def images(call: Call, self: torch.Tensor) -> None:
    """A result as large as the columns, which is then resized: it keeps that memory."""
    call.output(size=max(self.nbytes, call.result.nbytes))


@rule(aten.unfold_backward)
def unfold_backward(call: Call, input_sizes: Sequence[int], dim: int) -> None:
    """The result, and positions along the dimension that was unfolded."""
    call.output()
    call.touch(8 * (input_sizes[dim] if input_sizes else 1))
