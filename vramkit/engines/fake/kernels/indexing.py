"""Looking up rows and bringing gradients back to them: sorts of indices, and sums of rows that were looked up often."""

from __future__ import annotations

import math

import torch

from .call import Call
from .copies import broadcast, copies, size_of
from .cub import radix_sort, scan, scan_by_key, selected, unique, up
from .reductions import reduce
from .registry import rule
from .sorting import SHORT_ROW

aten = torch.ops.aten
_FEW_INDICES = 3072
_ROWS_OF_A_PART = 10


def _sum_rows(
    call: Call, indices: torch.Tensor, rows: int, gradient: torch.Tensor, *, by_frequency: bool, bags: bool
) -> None:
    """The result: indices sorted with their places, the first of each run of equal ones, sums of parts of runs.

    Few rows that are looked up often are added to at once, in single precision, unless there are bags.
    """
    columns = gradient.shape[-1]
    gpu, count, width = call.gpu, indices.numel(), indices.element_size()
    every = width * count
    segments = min(count, rows)
    parts = count // _ROWS_OF_A_PART + segments
    warps = 32 * up(columns, 32)
    blocks = up(segments * warps, min(warps, 1024))
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
def embedding_backward(call: Call) -> None:
    """A copy of the gradient unless it is contiguous; for many indices they are sorted, and rows summed in parts."""
    gradient, indices, rows = call.args[:3]
    by_frequency = bool(call.argument(4, "scale_grad_by_freq", False))
    with call.holding(*copies(gradient)):
        if indices.numel() <= _FEW_INDICES and not by_frequency:
            call.output()
            return
        _sum_rows(call, indices, rows, gradient, by_frequency=by_frequency, bags=False)


@rule(aten.embedding_renorm_)
def embedding_renorm(call: Call) -> None:
    """The indices sorted, with their places, and each of them once."""
    indices = call.args[1]
    count, width = indices.numel(), indices.element_size()
    every = width * count
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
def bags_backward(call: Call) -> None:
    """A copy of the gradient unless it is contiguous; then as that of an embedding with many indices, also with few. Of
    the largest values alone, the result."""
    gradient, indices, rows = call.args[0], call.args[1], call.args[6]
    by_frequency, mode = call.args[7:9]
    with call.holding(*copies(gradient)):
        if mode == 2 or not indices.numel():
            call.output()
            return
        _sum_rows(call, indices, rows, gradient, by_frequency=by_frequency, bags=True)


@rule(aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
def by_index(call: Call) -> None:
    """The result; what a value on the host is copied to; where it adds up, places in memory, sorted."""
    call.output()
    if call.func.overloadpacket is aten.index:
        return
    tensor, indices, values = call.args[:3]
    if values.device.type == "cpu":
        call.touch(values.element_size())
    if not call.argument(3, "accumulate", False):
        return
    given = [index for index in indices if index is not None]
    count = math.prod(broadcast(given))
    every = 8 * count
    if not call.in_backward:  # whether an index lies outside
        least, most = call.take(8), call.take(8)
        reduce(call, torch.empty(count, device="meta"), (), 16)
        call.touch(1)
        call.give(call.take(1), least, most)
    with call.holding(every):
        call.touch(every)
        for _ in given[1:]:
            with call.holding(every):
                call.touch(every)
        places = math.prod(size for size, index in zip(tensor.shape, indices, strict=False) if index is not None)
        with call.holding(*copies(values), every, every, every):
            call.touch(radix_sort(call.gpu, count, 8, 8, max(1, places.bit_length())))


@rule(aten.searchsorted, aten.bucketize)
def search(call: Call) -> None:
    """The result, and copies of what is not contiguous."""
    call.output()
    call.touch_together(*copies(*(each for each in call.args[:2] if isinstance(each, torch.Tensor))))


@rule(aten.roll)
def roll(call: Call) -> None:
    """Rolled along one dimension after the other."""
    before = None
    for _ in call.argument(2, "dims", ())[1:]:
        after = call.take(size_of(call.result))
        call.give(before)
        before = after
    call.output()
    call.give(before)


@rule(aten.scatter_reduce, aten.scatter_reduce_, aten.index_reduce, aten.index_reduce_)
def reduced(call: Call) -> None:
    """The result; of means how many there are of each."""
    call.output()
    if call.args[4] == "mean":
        ones, counts, empty = size_of(call.args[3]), size_of(call.result), call.result.numel()
        if call.func.overloadpacket in (aten.index_reduce, aten.index_reduce_):
            with call.holding(counts):
                call.touch(ones, empty)
        else:
            call.touch_together(ones, counts, empty)


@rule(aten.masked_scatter, aten.masked_scatter_)
def masked_scatter(call: Call) -> None:
    """The result; how many places come before each, and what counting them takes."""
    call.output()
    if count := call.result.numel():
        call.touch_together(8 * count, scan(count, 8))


@rule(aten.masked_scatter_backward)
def masked_scatter_backward(call: Call) -> None:
    """What the mask selects, taken for nothing, then zeros for the rest, and both together."""
    with call.holding(4):
        call.touch(*selected(call.gpu, call.args[1].numel()))
    with call.holding(size_of(call.result)):
        call.output()
