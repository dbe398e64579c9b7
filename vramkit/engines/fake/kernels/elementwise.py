"""Kernels that work element by element, row by row or window by window: dropout, softmax, losses, pooling."""

from __future__ import annotations

import torch

from ..calls import Call
from .copies import copies, size_of
from .reductions import buffers
from .table import rule

aten = torch.ops.aten


@rule(aten.native_dropout)
def dropout(call: Call) -> None:
    """The mask first."""
    call.output(1)
    call.output(0)


@rule(aten._softmax, aten._log_softmax)
def softmax(call: Call) -> None:
    """The result, then a copy of the input unless it is contiguous."""
    call.output()
    call.touch(*copies(call.args[0]))


@rule(aten._softmax_backward_data, aten._log_softmax_backward_data)
def softmax_backward(call: Call) -> None:
    """The result, softmax's product of gradient and output, copies of the two unless they are contiguous."""
    gradient, out = call.args[:2]
    call.output()
    if call.func.overloadpacket is aten._softmax_backward_data:
        keeps_order = gradient.is_contiguous() or 0 in gradient.stride()
        with call.holding(size_of(out), *([] if keeps_order else [size_of(out)]), *copies(out)):
            pass
    else:
        with call.holding(*copies(gradient, out)):
            pass


# operator -> position of its argument "reduction"
_LOSSES = {aten.mse_loss: 2, aten.smooth_l1_loss: 2, aten.huber_loss: 2, aten.binary_cross_entropy: 3}


@rule(*_LOSSES)
def loss(call: Call) -> None:
    """The loss of each element, and what adds it up."""
    if not call.argument(_LOSSES[call.func.overloadpacket], "reduction", 1):
        return
    tensor = call.args[0]
    with call.holding(size_of(tensor)):
        call.output()
        with call.holding(*buffers(tensor, (), call.gpu)):
            pass


@rule(
    aten.max_pool2d_with_indices_backward, aten.avg_pool2d_backward, aten.adaptive_max_pool2d_backward,
    aten.upsample_nearest2d_backward, aten.upsample_bilinear2d_backward, aten.upsample_bicubic2d_backward,
    aten.reflection_pad2d_backward,
)  # fmt: skip
def window_backward(call: Call) -> None:
    """The result, then a copy of the gradient unless it is contiguous."""
    call.output()
    last = call.args[0].dim() == 4 and call.args[0].is_contiguous(memory_format=torch.channels_last)
    call.touch(*([] if last else copies(call.args[0])))
