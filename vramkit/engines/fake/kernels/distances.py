"""Distances of all pairs: products of vectors and, on the way back, a difference for each pair and element."""

from __future__ import annotations

import math

import torch

from .call import Call
from .copies import size_of
from .matmul import workspace_of
from .registry import rule

aten = torch.ops.aten


@rule(aten._euclidean_dist)
def by_products(call: Call) -> None:
    """Squares and their sums, both factors with the sums and ones beside them, and the result: their product."""
    extended, sums = [], []
    for index, tensor in enumerate(call.args[:2]):
        size = size_of(tensor)
        of_rows = size // max(tensor.shape[-1], 1)
        squares = call.take(size)
        sums.append([call.take(of_rows)])
        call.give(squares)
        sums[index].append(call.take(of_rows))
    for index, tensor in enumerate(call.args[:2]):
        size = size_of(tensor)
        factor = call.take(size) if index == 0 else None
        extended.append(call.take(size + 2 * (size // max(tensor.shape[-1], 1))))
        call.give(factor, *sums[index])
    call.output()
    call.workspace("cublas", workspace_of(call.gpu))
    call.give(*reversed(extended))


@rule(aten._cdist_backward)
def of_pairs_backward(call: Call) -> None:
    """The result, and a gradient for each pair and element."""
    call.output()
    first, second = call.args[1:3]
    call.touch(first.numel() * second.shape[-2] * first.element_size())


@rule(aten._pdist_backward)
def of_one_backward(call: Call) -> None:
    """The result, and a gradient for each pair and element."""
    call.output()
    tensor = call.args[1]
    call.touch(max(tensor.shape[0] - 1, 0) * math.prod(tensor.shape) * tensor.element_size())
