"""Norms: copies of inputs that are not contiguous, and sums of the backward."""

from __future__ import annotations

import torch

from ..calls import Call
from .copies import copies
from .table import rule

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
