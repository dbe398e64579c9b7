"""Norms: copies of inputs that are not contiguous, and the sums that their backwards need."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ....torch_internals.fakes import memory_format_of
from ....torch_internals.operators import fused_rms_norm_backward
from . import cudnn_sizes
from .arithmetic import ceil_div, last_power_of_two
from .call import Call
from .copies import copies
from .reductions import buffers, cast
from .registry import rule

aten = torch.ops.aten


@rule(aten.native_layer_norm, aten._fused_rms_norm)
def layer_norm(call: Call, input: torch.Tensor) -> None:
    """A copy of the input unless it is contiguous, then the results."""
    with call.holding(*copies(input)):
        for index in range(len(call.result)):
            call.output(index)


@rule(aten.native_layer_norm_backward, *filter(None, [fused_rms_norm_backward]))
def layer_norm_backward(call: Call, grad_out: torch.Tensor, input: torch.Tensor) -> None:
    """A copy of the input unless it is contiguous, the results, then a copy of the gradient."""
    with call.holding(*copies(input)):
        for index in range(len(call.result)):
            call.output(index)
        call.touch(*copies(grad_out))


@rule(aten.renorm)
def renorm(call: Call, self: torch.Tensor, dim: int) -> None:
    """The result; the norms in single precision, and the factors in the tensor's type."""
    call.output()
    kind = torch.promote_types(self.dtype, torch.float32)
    count = self.shape[dim]
    with call.holding(count * kind.itemsize):
        dims = [each for each in range(self.dim()) if each != dim % self.dim()]
        call.touch_together(*buffers(self, dims, call.gpu, kind.itemsize))
        call.touch(*[count * self.element_size()] * (kind != self.dtype))


@rule(aten.native_group_norm)
def group_norm(
    call: Call,
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    N: int,  # noqa: N803 - the schema's name, here and below
    C: int,  # noqa: N803
    HxW: int,  # noqa: N803
    group: int,
) -> None:
    """The results; statistics in single precision, then a factor and a summand for each channel of each sample."""
    for index in range(3):
        call.output(index)
    width = max(4, input.element_size())
    exact = [N * group * width] * 2 if input.element_size() < width else []
    with call.holding(*copies(input), *exact):
        if HxW > 1 and (weight is not None or bias is not None):
            call.touch_together(N * C * width, N * C * width)


@rule(aten.native_group_norm_backward)
def group_norm_backward(
    call: Call,
    grad_out: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor | None,
    N: int,  # noqa: N803
    C: int,  # noqa: N803
    HxW: int,  # noqa: N803
    group: int,
    output_mask: Sequence[bool],
) -> None:
    """Copies unless contiguous, the results; two sums for each channel, two for each group, a factor a channel."""
    width = max(4, input.element_size())
    by_channel, by_group = N * C * width, N * group * width
    if call.result[0] is not None and not call.result[0].is_contiguous():  # fakes keep the gradient's order here
        of_input = torch.empty_like(call.result[0], memory_format=torch.contiguous_format)
        call.result = (of_input, *call.result[1:])
    with call.holding(*copies(grad_out, input)):
        for index in range(3):
            call.output(index)
        with call.holding(*([by_channel] * 2 if HxW > 1 else [])):
            if output_mask[0]:
                with call.holding(by_group, by_group):
                    call.touch(*[by_channel] * (HxW > 1 and weight is not None))


def _is_channels_last(tensor: torch.Tensor) -> bool | None:
    """Whether channels lie next to each other; None: in no order that kernels know."""
    if tensor.is_contiguous():
        return tensor.stride(1) == 1
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    return True if last is not None and tensor.is_contiguous(memory_format=last) else None


def _shared(tensor: torch.Tensor, numbers: int) -> list[int]:
    """Bytes in which blocks of threads meet that share a channel (``flexible_launch_configs``).

    Args:
        tensor: with its channels last.
        numbers: of single precision that each of them has for a channel.
    """
    channels = tensor.shape[1]
    pixels = tensor.numel() // max(channels, 1)
    width = min(last_power_of_two(channels), 32)
    height = min(last_power_of_two(ceil_div(pixels, 16)), 512 // width)
    if width * height != 512:
        width = min(last_power_of_two(channels), 512 // height)
    across, along = ceil_div(channels, width), min(ceil_div(pixels, 16 * height), 128)
    return [4 * numbers * channels * along, 4 * across] if along >= 8 else []


@rule(aten.native_batch_norm)
def batch_norm(
    call: Call,
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    training: bool,
) -> None:
    """The results; of a batch's statistics what blocks of threads share, or sums of a copy in single precision, where
    torch can't add up the type itself."""
    for index in range(3):
        call.output(index)
    is_last = _is_channels_last(input)
    if is_last and training:
        call.touch_together(*_shared(input, 4))
    if is_last is None:
        kind = torch.promote_types(input.dtype, torch.float32)
        if training:
            dims = [dim for dim in range(input.dim()) if dim != 1]
            with call.holding(*(cast(input, kind) if input.dtype == torch.bfloat16 else [])):
                call.touch_together(*buffers(input, dims, call.gpu, 16, fast=False))
        call.touch_together(*(kind.itemsize for given in (weight, bias) if given is None))  # one, zero


@rule(aten.native_batch_norm_backward)
def batch_norm_backward(
    call: Call,
    grad_out: torch.Tensor,
    input: torch.Tensor,
    save_invstd: torch.Tensor | None,
    train: bool,
    output_mask: Sequence[bool],
) -> None:
    """The gradients; where channels lie next to each other, sums for each of them first, and what blocks share."""
    if not output_mask[0]:
        call.result = (None, *call.result[1:])
    is_last = bool(_is_channels_last(input) and _is_channels_last(grad_out))
    if not (is_last and train) and call.result[0] is not None:  # fakes keep the input's order
        own = torch.empty_like(call.result[0], memory_format=torch.contiguous_format)
        call.result = (own, *call.result[1:])
    if not is_last:
        for index in range(3):
            call.output(index)
        return
    sums = max(4, input.element_size()) * input.shape[1]
    with call.holding(*[sums] * (2 if save_invstd is not None and save_invstd.numel() else 3)):
        call.output(1)
        call.output(2)
        call.touch_together(*_shared(input, 2))
        call.output(0)


@rule(aten.cudnn_batch_norm)
def cudnn_batch_norm(call: Call, input: torch.Tensor, training: bool) -> None:
    """The results, and what cuDNN's persistent kernels want."""
    for index in range(3):
        call.output(index)
    if training:
        call.touch(*_persistent(input, backward=False))


@rule(aten.cudnn_batch_norm_backward)
def cudnn_batch_norm_backward(call: Call, input: torch.Tensor) -> None:
    """As the forward."""
    for index in range(3):
        call.output(index)
    call.touch(*_persistent(input, backward=True))


def _persistent(tensor: torch.Tensor, *, backward: bool) -> list[int]:
    if memory_format_of(tensor) not in (torch.channels_last, torch.channels_last_3d):
        return []
    channels = tensor.shape[1]
    return [
        cudnn_sizes.batch_norm(tensor.numel() // max(channels, 1), channels, tensor.element_size(), backward=backward)
    ]
