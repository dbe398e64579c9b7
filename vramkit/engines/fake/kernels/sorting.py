"""Sorts and what is made of them: whole sorts, the largest few, medians, permutations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ....torch_internals.fakes import is_dense
from .arithmetic import ceil_div
from .call import Call
from .copies import copies
from .cub import radix_sort, scan_by_key, segmented_sort
from .reductions import reduce
from .registry import rule

aten = torch.ops.aten
SHORT_ROW = 4096
"""Elements that a block of threads sorts by itself."""
_FEW_ROWS = 128
_LONG_ROW = 1_000_000


def _sort(call: Call, tensor: torch.Tensor, dim: int, results: Sequence[torch.Tensor]) -> None:
    """What a sort takes once its results are there.

    Args:
        call: of any operator that sorts.
        tensor: what is sorted.
        dim: along which dimension.
        results: values and indices, of which only the strides count.
    """
    if not tensor.numel() or not tensor.dim():
        return
    length = tensor.shape[dim]
    if length <= SHORT_ROW:
        call.touch(8 * length)
        return
    count, width = tensor.numel(), tensor.element_size()
    own = []
    strides = tensor.stride()
    if not (is_dense(tensor) and strides[dim] == 1):
        own.append(tensor.nbytes)
        order = [each for each in range(tensor.dim()) if each != dim % tensor.dim()]
        strides = torch.empty_permuted(tensor.shape, [*order, dim % tensor.dim()], device="meta").stride()
    for result, each in zip(results, (width, 8), strict=True):
        if result.stride() != strides:
            own.append(count * each)
    with call.holding(*own):
        _sort_rows(call, count // length, length, width)


def _sort_rows(call: Call, rows: int, length: int, width: int) -> None:
    count = rows * length
    if rows == 1 or length >= _LONG_ROW:
        with call.holding(8 * length):
            call.touch(*[radix_sort(call.gpu, length, width, 8)] * rows)
    elif rows < _FEW_ROWS:
        with call.holding(8 * count, 8 * count):
            with call.holding(width * count):
                call.touch(radix_sort(call.gpu, count, width, 8))
            call.touch(radix_sort(call.gpu, count, 8, 0, max(1, math.ceil(math.log2(rows)))))
    else:
        with call.holding(8 * count):
            call.touch(segmented_sort(count, width, 8))


@rule(aten.sort)
def sort(call: Call, self: torch.Tensor, dim: int) -> None:
    """The results; then indices of a row, or of a long one copies and the sort's own buffers."""
    call.output(0)
    call.output(1)
    _sort(call, self, dim, call.result)


# up to so many rows -> from which length on several blocks of threads look at a row
_SHARED_ROWS = ((20, 20_000), (40, 10_000), (80, 8_000), (200, 5_000), (800, 3_000), (4_000, 800))


def _blocks_of_a_row(call: Call, rows: int, length: int) -> int:
    """How many blocks of threads look at one row; 0: one, another kernel."""
    shared = next((shared for limit, shared in _SHARED_ROWS if rows <= limit), 400)
    if length < shared:
        return 0
    items = ceil_div(rows * length, call.gpu.multiprocessors * 6 * 256)
    return ceil_div(length, 256 * max(4, min(items, 64)))


def largest(call: Call, tensor: torch.Tensor, dim: int) -> None:
    """What it takes to find the largest few, once their results are there."""
    length = tensor.shape[dim] if tensor.dim() else 1
    rows, width = tensor.numel() // length, tensor.element_size()
    with call.holding(*copies(tensor)):
        blocks = rows * _blocks_of_a_row(call, rows, length)
        if blocks:
            told = [rows * width, 8 * rows, max(8, 2 * width) * rows, 512 * blocks, 1024 * rows, 4 * blocks, 4 * blocks]
            with call.holding(*told):
                call.touch(scan_by_key(call.gpu, blocks, 4), scan_by_key(call.gpu, blocks, 4))


@rule(aten.topk)
def topk(call: Call, self: torch.Tensor, k: int, dim: int, sorted: bool) -> None:
    """The results; for long rows what blocks of threads tell each other; a sort of what was found."""
    call.output(0)
    call.output(1)
    values = call.result[0]
    if not values.numel():
        return
    largest(call, self, dim)
    if sorted and values.numel() > 1 and k > SHORT_ROW:
        with call.holding(8 * values.numel(), values.nbytes):
            _sort(call, values, dim, call.result)
            call.touch(8 * values.numel())


@rule(aten.randperm)
def randperm(call: Call) -> None:
    """The result, keys at random, both again in their order, and a sort of as many bits as make equal keys unlikely."""
    call.output()
    count = call.result.numel()
    if not count:
        return
    bits = min(64, math.ceil(math.log2(count - (6 * count * count + 1) / (12 * math.log(0.9)))))
    call.touch(8)
    width = 4 if bits <= 32 else 8
    with call.holding(8 * count, width * count, width * count):
        call.touch(radix_sort(call.gpu, count, width, 8, bits))


@rule(aten.mode)
def mode(call: Call, self: torch.Tensor, dim: int) -> None:
    """The results, and a copy of the input with the rows in their order."""
    call.output(0)
    call.output(1)
    if not self.dim():
        return
    call.touch(*copies(self.transpose(dim, -1)))
    if self.shape[dim] > 2048:
        call.assume("mode sorts rows of more than 2,048 elements one by one", 64 * self.shape[dim] + 10_000_000)


@rule(aten.kthvalue)
def kthvalue(call: Call, self: torch.Tensor) -> None:
    """A copy of the input unless it is contiguous, and the results."""
    with call.holding(*copies(self)):
        call.output(0)
        call.output(1)


@rule(aten.median, aten.nanmedian)
def median(call: Call, self: torch.Tensor) -> None:
    """Of rows a copy of the input unless it is contiguous, and the results; of all elements a sort."""
    if isinstance(call.result, tuple):
        with call.holding(*copies(self)):
            call.output(0)
            call.output(1)
        return
    count = self.numel()
    flat = torch.empty(count, dtype=self.dtype, device="meta")
    with call.holding(*copies(self)), call.holding(self.nbytes):
        order = call.take(8 * count)
        _sort(call, flat, 0, (flat, flat))
        call.give(order)
        if call.operator is aten.median:
            with call.holding(1):
                call.output()
            return
        missing = call.take(count)
        number = call.take(8)
        with call.holding(8 * count):
            reduce(call, flat, (), 8)
        rest, half, place = call.take(8), call.take(4), call.take(8)
        call.give(missing, number, rest, half)
        call.output()
    call.give(place)
