"""Norms: copies of inputs that are not contiguous, and sums of the backward."""

from __future__ import annotations

import torch

from .call import Call
from .copies import copies
from .reductions import buffers, cast
from .registry import rule

aten = torch.ops.aten


@rule(aten.native_layer_norm, aten._fused_rms_norm)
def layer_norm(call: Call) -> None:
    """A copy of the input unless it is contiguous, then the results."""
    with call.holding(*copies(call.args[0])):
        for index in range(len(call.result)):
            call.output(index)


@rule(aten.native_layer_norm_backward, aten._fused_rms_norm_backward)
def layer_norm_backward(call: Call) -> None:
    """A copy of the input unless it is contiguous, the results, then a copy of the gradient."""
    gradient, tensor = call.args[:2]
    with call.holding(*copies(tensor)):
        for index in range(len(call.result)):
            call.output(index)
        call.touch(*copies(gradient))


@rule(aten.renorm)
def renorm(call: Call) -> None:
    """The result; the norms in single precision, and the factors in the tensor's type."""
    call.output()
    tensor, dim = call.args[0], call.args[2] % call.args[0].dim()
    kind = torch.promote_types(tensor.dtype, torch.float32)
    count = tensor.shape[dim]
    with call.holding(count * kind.itemsize):
        dims = [each for each in range(tensor.dim()) if each != dim]
        call.touch_together(*buffers(tensor, dims, call.gpu, kind.itemsize))
        call.touch(*[count * tensor.element_size()] * (kind != tensor.dtype))


@rule(aten.native_group_norm)
def group_norm(call: Call) -> None:
    """The results; statistics in single precision, then a factor and a summand for each channel of each sample."""
    for index in range(3):
        call.output(index)
    tensor, weight, bias, count, channels, pixels, groups = call.args[:7]
    width = max(4, tensor.element_size())
    exact = [count * groups * width] * 2 if tensor.element_size() < width else []
    with call.holding(*copies(tensor), *exact):
        if pixels > 1 and (weight is not None or bias is not None):
            with call.holding(count * channels * width, count * channels * width):
                pass


@rule(aten.native_group_norm_backward)
def group_norm_backward(call: Call) -> None:
    """Copies unless contiguous, the results; two sums for each channel, two for each group, a factor a channel."""
    gradient, tensor, weight, pixels, mask = call.args[0], call.args[1], call.args[4], call.args[7], call.args[9]
    count, channels, groups = call.args[5], call.args[6], call.args[8]
    width = max(4, tensor.element_size())
    by_channel, by_group = count * channels * width, count * groups * width
    if call.result[0] is not None and not call.result[0].is_contiguous():  # fakes keep the gradient's order here
        of_input = torch.empty_like(call.result[0], memory_format=torch.contiguous_format)
        call.result = (of_input, *call.result[1:])
    with call.holding(*copies(gradient, tensor)):
        for index in range(3):
            call.output(index)
        with call.holding(*([by_channel] * 2 if pixels > 1 else [])):
            if mask[0]:
                with call.holding(by_group, by_group):
                    call.touch(*[by_channel] * (pixels > 1 and weight is not None))


def _is_channels_last(tensor: torch.Tensor) -> bool | None:
    """Whether channels lie next to each other; None: in no order that kernels know."""
    if tensor.is_contiguous():
        return tensor.stride(1) == 1
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    return True if last is not None and tensor.is_contiguous(memory_format=last) else None


def _power(number: int) -> int:
    return 1 << max(number.bit_length() - 1, 0)


def _shared(tensor: torch.Tensor, numbers: int) -> list[int]:
    """Bytes in which blocks of threads meet that share a channel (``flexible_launch_configs``).

    Args:
        tensor: with its channels last.
        numbers: of single precision that each of them has for a channel.
    """
    channels = tensor.shape[1]
    pixels = tensor.numel() // max(channels, 1)
    width = min(_power(channels), 32)
    height = min(_power(-(-pixels // 16)), 512 // width)
    if width * height != 512:
        width = min(_power(channels), 512 // height)
    across, along = -(-channels // width), min(-(-pixels // (16 * height)), 128)
    return [4 * numbers * channels * along, 4 * across] if along >= 8 else []


@rule(aten.native_batch_norm)
def batch_norm(call: Call) -> None:
    """The results; of a batch's statistics what blocks of threads share, or sums of a copy in single precision, where
    torch can't add up the type itself."""
    tensor = call.args[0]
    for index in range(3):
        call.output(index)
    is_last, trains = _is_channels_last(tensor), call.argument(5, "training", True)
    if is_last and trains:
        call.touch_together(*_shared(tensor, 4))
    if is_last is None:
        kind = torch.promote_types(tensor.dtype, torch.float32)
        if trains:
            dims = [dim for dim in range(tensor.dim()) if dim != 1]
            with call.holding(*(cast(tensor, kind) if tensor.dtype == torch.bfloat16 else [])):
                call.touch_together(*buffers(tensor, dims, call.gpu, 16, fast=False))
        call.touch_together(*(kind.itemsize for given in call.args[1:3] if given is None))  # one, zero


@rule(aten.native_batch_norm_backward)
def batch_norm_backward(call: Call) -> None:
    """The gradients; where channels lie next to each other, sums for each of them first, and what blocks share."""
    gradient, tensor, saved, trains, mask = call.args[0], call.args[1], call.args[6], call.args[7], call.args[9]
    if not mask[0]:
        call.result = (None, *call.result[1:])
    is_last = bool(_is_channels_last(tensor) and _is_channels_last(gradient))
    if not (is_last and trains) and call.result[0] is not None:  # fakes keep the input's order
        own = torch.empty_like(call.result[0], memory_format=torch.contiguous_format)
        call.result = (own, *call.result[1:])
    if not is_last:
        for index in range(3):
            call.output(index)
        return
    sums = max(4, tensor.element_size()) * tensor.shape[1]
    with call.holding(*[sums] * (2 if saved is not None and saved.numel() else 3)):
        call.output(1)
        call.output(2)
        call.touch_together(*_shared(tensor, 2))
        call.output(0)
