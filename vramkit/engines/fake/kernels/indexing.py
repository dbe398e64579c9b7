"""Looking up rows and bringing gradients back to them: sorts of indices, and sums of rows that were looked up often."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .arithmetic import ceil_div, round_up
from .call import Call
from .copies import broadcast, copies
from .cub import radix_sort, scan, scan_by_key, selected, unique
from .reductions import reduce
from .registry import rule
from .sorting import SHORT_ROW

aten = torch.ops.aten
_FEW_INDICES = 3072
_ROWS_OF_A_PART = 10
_MAXIMUM = 2  # the mode of a bag, after sum and mean


def _sum_rows(
    call: Call, indices: torch.Tensor, rows: int, gradient: torch.Tensor, *, by_frequency: bool, bags: bool
) -> None:
    """The result: indices sorted with their places, the first of each run of equal ones, sums of parts of runs.

    Few rows that are looked up often are added to at once, in single precision, unless there are bags.
    """
    columns = gradient.shape[-1]
    gpu, count, width = call.gpu, indices.numel(), indices.element_size()
    every = indices.nbytes
    segments = min(count, rows)
    parts = count // _ROWS_OF_A_PART + segments
    warps = round_up(columns, 32)
    blocks = ceil_div(segments * warps, min(warps, 1024))
    leaves_idle = blocks < 4 * gpu.multiprocessors and parts > 4 * blocks  # as in torch's EmbeddingBackwardKernel.cu
    if leaves_idle and not bags and not torch.are_deterministic_algorithms_enabled():
        sums = [width * parts, *([4 * rows * columns] if gradient.element_size() == 2 else [])]
    else:
        sums = [max(4, gradient.element_size()) * parts * columns]
    with call.holding(every, every):
        with call.holding(every):
            call.touch(radix_sort(gpu, count, width, width, max(1, rows.bit_length())))
        counts = call.take(every) if by_frequency else None
        if by_frequency:
            call.touch(scan_by_key(gpu, count, width), scan_by_key(gpu, count, width))
        call.output()
        with call.holding(every, 8):
            with call.holding(every):
                call.touch(unique(gpu, count, width))
            with call.holding(width * segments, width * segments):
                call.touch(scan(segments, width))
                with call.holding(8, width * parts, *sums):
                    pass
        call.give(counts)


@rule(aten.embedding_dense_backward)
def embedding_backward(
    call: Call, grad_output: torch.Tensor, indices: torch.Tensor, num_weights: int, scale_grad_by_freq: bool
) -> None:
    """A copy of the gradient unless it is contiguous; for many indices they are sorted, and rows summed in parts."""
    with call.holding(*copies(grad_output)):
        if indices.numel() <= _FEW_INDICES and not scale_grad_by_freq:
            call.output()
            return
        _sum_rows(call, indices, num_weights, grad_output, by_frequency=scale_grad_by_freq, bags=False)


@rule(aten.embedding_renorm_)
def embedding_renorm(call: Call, indices: torch.Tensor) -> None:
    """The indices sorted, with their places, and each of them once."""
    count, width, every = indices.numel(), indices.element_size(), indices.nbytes
    with call.holding(every, 8 * count):
        with call.holding(every, 8 * count):
            call.touch(*[radix_sort(call.gpu, count, width, 8)] * (count > SHORT_ROW))
        with call.holding(every, 8):
            call.touch(unique(call.gpu, count, width, alone=True))


@rule(aten._embedding_bag, aten._embedding_bag_forward_only)
def bags(call: Call) -> None:
    """How large each bag is, to which bag each index belongs, the result, where the largest values are."""
    for index in (2, 1, 0, 3):
        call.output(index)


@rule(aten._embedding_bag_backward)
def bags_backward(
    call: Call, grad: torch.Tensor, indices: torch.Tensor, num_weights: int, scale_grad_by_freq: bool, mode: int
) -> None:
    """A copy of the gradient unless it is contiguous; then as that of an embedding with many indices, also with few. Of
    the largest values alone, the result."""
    with call.holding(*copies(grad)):
        if mode == _MAXIMUM or not indices.numel():
            call.output()
            return
        _sum_rows(call, indices, num_weights, grad, by_frequency=scale_grad_by_freq, bags=True)


@rule(aten.index)
def index(call: Call) -> None:
    """The result."""
    call.output()


@rule(aten.index_put, aten.index_put_, aten._index_put_impl_)
def index_put(
    call: Call,
    self: torch.Tensor,
    indices: Sequence[torch.Tensor | None],
    values: torch.Tensor,
    accumulate: bool,
) -> None:
    """The result; what a value on the host is copied to; where it adds up, places in memory, sorted."""
    call.output()
    if values.device.type == "cpu":
        call.touch(values.element_size())
    if not accumulate:
        return
    given = [index for index in indices if index is not None]
    count = math.prod(broadcast(given))
    every = 8 * count
    if not call.in_backward:  # whether an index lies outside
        smallest, largest = call.take(8), call.take(8)
        reduce(call, torch.empty(count, device="meta"), (), 16)
        call.touch(1)
        call.give(call.take(1), smallest, largest)
    with call.holding(every):
        call.touch(every)
        for _ in given[1:]:
            with call.holding(every):
                call.touch(every)
        places = math.prod(size for size, index in zip(self.shape, indices, strict=False) if index is not None)
        with call.holding(*copies(values), every, every, every):
            call.touch(radix_sort(call.gpu, count, 8, 8, max(1, places.bit_length())))


@rule(aten.searchsorted)
def searchsorted(call: Call, sorted_sequence: torch.Tensor, self: torch.Tensor | float) -> None:
    """The result, and copies of what is not contiguous."""
    call.output()
    call.touch_together(*copies(*(each for each in (sorted_sequence, self) if isinstance(each, torch.Tensor))))


@rule(aten.bucketize)
def bucketize(call: Call, self: torch.Tensor | float, boundaries: torch.Tensor) -> None:
    """The result, and copies of what is not contiguous."""
    call.output()
    call.touch_together(*copies(*(each for each in (self, boundaries) if isinstance(each, torch.Tensor))))


@rule(aten.roll)
def roll(call: Call, dims: Sequence[int]) -> None:
    """Rolled along one dimension after the other."""
    before = None
    for _ in dims[1:]:
        after = call.take(call.result.nbytes)
        call.give(before)
        before = after
    call.output()
    call.give(before)


@rule(aten.scatter_reduce, aten.scatter_reduce_)
def scatter_reduce(call: Call, src: torch.Tensor, reduce: str) -> None:
    """The result; of means a one for each value, how many there are of each, and where there are none."""
    call.output()
    if reduce == "mean":
        call.touch_together(src.nbytes, call.result.nbytes, call.result.numel())


@rule(aten.index_reduce, aten.index_reduce_)
def index_reduce(call: Call, source: torch.Tensor, reduce: str) -> None:
    """The result; of means how many there are of each, counted by ones, and where there are none."""
    call.output()
    if reduce == "mean":
        with call.holding(call.result.nbytes):
            call.touch(source.nbytes, call.result.numel())


@rule(aten.masked_scatter, aten.masked_scatter_)
def masked_scatter(call: Call) -> None:
    """The result; how many places come before each, and what counting them takes."""
    call.output()
    if count := call.result.numel():
        call.touch_together(8 * count, scan(count, 8))


@rule(aten.masked_scatter_backward)
def masked_scatter_backward(call: Call, mask: torch.Tensor) -> None:
    """What the mask selects, taken for nothing, then zeros for the rest, and both together."""
    with call.holding(4):
        call.touch(*selected(call.gpu, mask.numel()))
    with call.holding(call.result.nbytes):
        call.output()
