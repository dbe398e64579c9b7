"""Scans, such as running sums: of one row CUB's, whose tiles tell each other how far they are."""

from __future__ import annotations

import torch

from .call import Call
from .cub import scan
from .reductions import cast
from .registry import rule

aten = torch.ops.aten


@rule(aten.cumsum, aten.cumprod, aten.logcumsumexp)
def running(call: Call, self: torch.Tensor) -> None:
    """The result, the input in its type, and the tiles' states."""
    call.output()
    with call.holding(*cast(self, call.result.dtype)):
        if self.dim() == 1 and self.is_contiguous() and self.numel():
            call.touch(scan(self.numel(), call.result.element_size()))
    if call.operator is aten.cumprod and torch.is_grad_enabled():
        call.assume("The backward of cumprod depends on where there are zeros", 12 * self.nbytes)
