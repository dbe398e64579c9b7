"""Scans, such as running sums: of one row CUB's, whose tiles tell each other how far they are."""

from __future__ import annotations

import torch

from .call import Call
from .copies import size_of
from .cub import scan
from .reductions import cast
from .registry import rule

aten = torch.ops.aten


@rule(aten.cumsum, aten.cumprod, aten.logcumsumexp)
def running(call: Call) -> None:
    """The result, the input in its type, and the tiles' states."""
    tensor = call.args[0]
    call.output()
    with call.holding(*cast(tensor, call.result.dtype)):
        if tensor.dim() == 1 and tensor.is_contiguous() and tensor.numel():
            call.touch(scan(tensor.numel(), call.result.element_size()))
    if call.func.overloadpacket is aten.cumprod and torch.is_grad_enabled():
        call.assume("The backward of cumprod depends on where there are zeros", 12 * size_of(tensor))
