"""Kernels that work element by element, row: dropout, softmax."""

from __future__ import annotations

import torch

from .call import Call
from .copies import copies, size_of
from .registry import rule

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


@rule(aten.isinf)
def isinf(call: Call) -> None:
    """Absolute values, which are compared."""
    tensor = call.args[0]
    with call.holding(*([size_of(tensor)] if tensor.is_floating_point() else [])):
        call.output()
