"""Distances of all pairs: products of vectors and, on the way back, a difference for each pair and element."""

from __future__ import annotations

import torch

from .call import Call
from .registry import rule

aten = torch.ops.aten


@rule(aten._euclidean_dist)
def by_products(call: Call, x1: torch.Tensor, x2: torch.Tensor) -> None:
    """Squares and their sums, both factors with the sums and ones beside them, and the result: their product."""
    extended, sums = [], []
    for index, tensor in enumerate((x1, x2)):
        size = tensor.nbytes
        of_rows = size // max(tensor.shape[-1], 1)
        squares = call.take(size)
        sums.append([call.take(of_rows)])
        call.give(squares)
        sums[index].append(call.take(of_rows))
    for index, tensor in enumerate((x1, x2)):
        size = tensor.nbytes
        factor = call.take(size) if index == 0 else None
        extended.append(call.take(size + 2 * (size // max(tensor.shape[-1], 1))))
        call.give(factor, *sums[index])
    call.output()
    call.cublas_workspace()
    call.give(*reversed(extended))


@rule(aten._cdist_backward)
def of_pairs_backward(call: Call, x1: torch.Tensor, x2: torch.Tensor) -> None:
    """The result, and a gradient for each pair and element."""
    call.output()
    call.touch(x1.nbytes * x2.shape[-2])


@rule(aten._pdist_backward)
def of_one_backward(call: Call, self: torch.Tensor) -> None:
    """The result, and a gradient for each pair and element."""
    call.output()
    call.touch(max(self.shape[0] - 1, 0) * self.nbytes)
