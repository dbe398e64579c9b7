"""Drawing by weight, and counting what falls where."""

from __future__ import annotations

import torch

from .call import Call
from .copies import size_of
from .cub import scan
from .reductions import reduce
from .registry import rule
from .sorting import largest

aten = torch.ops.aten


@rule(aten.multinomial)
def multinomial(call: Call) -> None:
    """The result; with replacement the weights as shares and their running sums.

    Without, checks of the weights, one random number for each of them, and the largest of those.
    """
    call.output()
    tensor, count = call.args[:2]
    width, size = tensor.element_size(), size_of(tensor)
    rows = tensor.shape[0] if tensor.dim() > 1 else 1
    if call.argument(2, "replacement", False) and count > 1:
        with call.holding(size, size, size):
            if tensor.dim() == 1:
                call.touch(scan(tensor.numel(), width))
        return
    kept = [call.take(width), call.take(width)]
    reduce(call, tensor, (), 2 * width)
    signs = [call.take(1) for _ in range(3)]
    call.give(*signs[:2])
    total = call.take(width * rows)
    reduce(call, tensor, (-1,), max(4, width))
    zeros = call.take(rows)
    if tensor.dim() > 1:
        kept.append(call.take(1))
        call.give(total, zeros)
    else:
        call.give(total)
        kept.append(zeros)
    call.touch(1)
    with call.holding(size):
        if count == 1:
            reduce(call, tensor, (-1,), 16, fast=False)
        else:
            with call.holding(rows * count * width):
                largest(call, tensor, count, -1)
    call.give(*kept, signs[2])


@rule(aten.histc)
def histogram(call: Call) -> None:
    """The result, and the least and the largest value unless they are given."""
    call.output()
    least, most = call.argument(2, "min", 0), call.argument(3, "max", 0)
    tensor = call.args[0]
    if least == most:
        with call.holding(tensor.element_size(), tensor.element_size()):
            reduce(call, tensor, (), 2 * tensor.element_size())
