"""Kernels that go element by element, or row by row: dropout, softmax, isinf."""

from __future__ import annotations

import torch

from .call import Call
from .copies import copies
from .registry import rule

aten = torch.ops.aten


@rule(aten.native_dropout)
def dropout(call: Call) -> None:
    """The mask first."""
    call.output(1)
    call.output(0)


@rule(aten._softmax, aten._log_softmax)
def softmax(call: Call, self: torch.Tensor) -> None:
    """The result, then a copy of the input unless it is contiguous."""
    call.output()
    call.touch(*copies(self))


@rule(aten._softmax_backward_data)
def softmax_backward(call: Call, grad_output: torch.Tensor, output: torch.Tensor) -> None:
    """The result, the product of gradient and output, copies of the two unless they are contiguous."""
    call.output()
    keeps_order = grad_output.is_contiguous() or 0 in grad_output.stride()
    call.touch_together(output.nbytes, *([] if keeps_order else [output.nbytes]), *copies(output))


@rule(aten._log_softmax_backward_data)
def log_softmax_backward(call: Call, grad_output: torch.Tensor, output: torch.Tensor) -> None:
    """The result, copies of gradient and output unless they are contiguous."""
    call.output()
    call.touch_together(*copies(grad_output, output))


@rule(aten.isinf)
def isinf(call: Call, self: torch.Tensor) -> None:
    """Absolute values, which are compared."""
    with call.holding(*([self.nbytes] if self.is_floating_point() else [])):
        call.output()
