"""Drawing by weight, and counting what falls where."""

from __future__ import annotations

import torch

from .call import Call
from .cub import scan
from .reductions import reduce
from .registry import rule
from .sorting import largest

aten = torch.ops.aten


@rule(aten.multinomial)
def multinomial(call: Call, self: torch.Tensor, num_samples: int, replacement: bool) -> None:
    """The result; with replacement the weights as shares and their running sums.

    Without, checks of the weights, one random number for each of them, and the largest of those.
    """
    call.output()
    width, size = self.element_size(), self.nbytes
    rows = self.shape[0] if self.dim() > 1 else 1
    if replacement and num_samples > 1:
        with call.holding(size, size, size):
            if self.dim() == 1:
                call.touch(scan(self.numel(), width))
        return
    kept = [call.take(width), call.take(width)]
    reduce(call, self, (), 2 * width)
    signs = [call.take(1) for _ in range(3)]
    call.give(*signs[:2])
    total = call.take(width * rows)
    reduce(call, self, (-1,), max(4, width))
    zeros = call.take(rows)
    if self.dim() > 1:
        kept.append(call.take(1))
        call.give(total, zeros)
    else:
        call.give(total)
        kept.append(zeros)
    call.touch(1)
    with call.holding(size):
        if num_samples == 1:
            reduce(call, self, (-1,), 16, fast=False)
        else:
            with call.holding(rows * num_samples * width):
                largest(call, self, -1)
    call.give(*kept, signs[2])


@rule(aten.histc)
def histogram(call: Call, self: torch.Tensor, min: float, max: float) -> None:
    """The result, and the smallest and the largest value unless they are given."""
    call.output()
    if min == max:
        width = self.element_size()
        with call.holding(width, width):
            reduce(call, self, (), 2 * width)
