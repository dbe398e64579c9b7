"""Reductions over so much that several blocks of threads share a result: the buffer in which they meet.

How torch spreads a reduction over a card (``setReduceConfig`` in ATen/native/cuda/Reduce.cuh) decides whether there is
one, and how large it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ....gpus import GPU
from .arithmetic import ceil_div, last_power_of_two
from .call import Call
from .registry import rule

aten = torch.ops.aten
_MAX_THREADS, _WARP = 512, 32
_FEW_VALUES, _MANY_VALUES = 16, 256  # that a thread reduces, at least and at most


@dataclass(frozen=True)
class _Dimension:
    size: int
    stride: int
    """Of the input, elements."""
    is_reduced: bool


def _dimensions(tensor: torch.Tensor, reduced: Sequence[int]) -> list[_Dimension]:
    """A tensor's dimensions as torch's iterator sees them: reduced ones first, then by stride, neighbours merged."""
    gone = {dim % max(tensor.dim(), 1) for dim in reduced} or set(range(tensor.dim()))
    found = [
        _Dimension(size, stride, dim in gone)
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True))
        if size != 1
    ]
    found.sort(key=lambda each: (not each.is_reduced, each.stride))
    merged: list[_Dimension] = []
    for each in found:
        last = merged[-1] if merged else None
        if last is not None and last.is_reduced == each.is_reduced and each.stride == last.size * last.stride:
            merged[-1] = _Dimension(last.size * each.size, last.stride, last.is_reduced)
        else:
            merged.append(each)
    return merged


def buffers(
    tensor: torch.Tensor, reduced: Sequence[int], gpu: GPU, accumulated: int = 4, *, fast: bool = True
) -> tuple[int, ...]:
    """Bytes of the buffer and of the semaphores that a reduction takes; empty: it takes none.

    Args:
        tensor: what is reduced.
        reduced: over which dimensions; none: over all.
        gpu: the card.
        accumulated: bytes of an intermediate value.
        fast: the kernel reads several neighbours at once where it can.
    """
    dimensions = _dimensions(tensor, reduced)
    inner = [each for each in dimensions if each.is_reduced]
    outer = [each for each in dimensions if not each.is_reduced]
    inputs = outputs = 1
    for each in inner:
        inputs *= each.size
    for each in outer:
        outputs *= each.size
    along = not outer or (bool(inner) and inner[0].stride < outer[0].stride)  # the fastest dimension is reduced
    width, height = (inputs, outputs) if along else (outputs, inputs)
    vector = 1
    fastest = (inner if along else outer)[0].stride if dimensions else 1
    if fastest == 1:
        if along and width >= 128 and len(dimensions) == 1 and fast:
            width //= 4
        elif not along:
            vector = 4
            others = [tensor.storage_offset(), outer[0].size, *(each.stride for each in (*inner, *outer[1:]))]
            while any(number % vector for number in others):
                vector //= 2
            width //= vector
    threads = _MAX_THREADS // vector
    block_width = min(last_power_of_two(width), _WARP)
    block_height = min(last_power_of_two(height), threads // block_width)
    block_width = min(last_power_of_two(width), threads // block_height)
    step_input, step_output = (block_width, 1) if along else (1, block_width)
    values = ceil_div(inputs, step_input)
    across = values >= block_height * _FEW_VALUES or values >= _MANY_VALUES
    if across:
        step_input *= block_height
    else:
        step_output *= block_height
    values = ceil_div(inputs, step_input)
    grid = ceil_div(outputs // vector, step_output)
    room = gpu.multiprocessors * (gpu.threads_per_multiprocessor // (block_width * block_height))
    if not across or values < _MANY_VALUES or grid > room:
        return ()
    blocks = max(min(ceil_div(room, grid), ceil_div(values, _FEW_VALUES)), ceil_div(values, _MANY_VALUES))
    if blocks <= 1:
        return ()
    size = accumulated * outputs * blocks
    return (size if along else size * block_width * vector), 4 * grid


_Dims = int | Sequence[int] | None


def _dims(dim: _Dims) -> Sequence[int]:
    if dim is None:
        return ()
    return (dim,) if isinstance(dim, int) else dim


# operator -> bytes of an intermediate value (0: by the type)
_WIDTHS = {
    aten.sum: 0, aten.mean: 0, aten.nansum: 0, aten.prod: 0, aten.amax: 0, aten.amin: 0, aten.linalg_vector_norm: 0,
    aten.norm: 0, aten.max: 0, aten.min: 0, aten.any: 1, aten.all: 1, aten.var: 16, aten.std: 16, aten.var_mean: 16,
    aten.std_mean: 16, aten.argmax: 16, aten.argmin: 16, aten.aminmax: 0,
}  # fmt: skip
_SUMS = {aten.sum, aten.nansum, aten.prod, aten.mean}
_EXTREMES = {aten.amax, aten.amin, aten.max, aten.min}
_HALVES = (torch.float16, torch.bfloat16)


@rule(*_WIDTHS)
def total(call: Call, self: torch.Tensor, dim: _Dims = None) -> None:
    """The results, the input in the type that a sum has, then buffer and semaphores."""
    operator = call.operator
    width = _WIDTHS[operator]
    has_several = isinstance(call.result, tuple)
    for index in range(len(call.result) if has_several else 1):
        call.output(index)
    if operator is aten.aminmax:
        width = 2 * self.element_size()
    elif has_several and not width:
        width = 16  # a value and its place
    if operator is aten.prod and torch.is_grad_enabled():
        call.assume("The backward of prod depends on where there are zeros", 8 * self.nbytes)
    kind = self.dtype
    if operator in _SUMS and kind != call.result.dtype and kind not in _HALVES:
        kind = call.result.dtype
    if not width:
        width = self.element_size() if operator in _EXTREMES else _of(kind)
    with call.holding(*cast(self, kind)):
        reduce(call, self, _dims(dim), width, fast=width < 16)


@rule(aten._is_any_true, aten._is_all_true)
def is_true(call: Call, self: torch.Tensor) -> None:
    """The result, then buffer and semaphores."""
    call.output()
    reduce(call, self, (), 1)


def cast(tensor: torch.Tensor, kind: torch.dtype) -> list[int]:
    """Bytes of the copy in another type, if it is another."""
    return [] if tensor.dtype == kind else [tensor.numel() * kind.itemsize]


def _of(kind: torch.dtype) -> int:
    return kind.itemsize if kind.is_complex else max(4, kind.itemsize)


def reduce(call: Call, tensor: torch.Tensor, dims: Sequence[int], width: int, *, fast: bool = True) -> None:
    """What a reduction takes for its blocks of threads to meet in."""
    call.touch_together(*buffers(tensor, dims, call.gpu, width, fast=fast))


@rule(aten.count_nonzero)
def count_nonzero(call: Call, self: torch.Tensor, dim: _Dims) -> None:
    """What is not zero; their sum, of numbers of eight bytes."""
    with call.holding(self.numel()):
        call.output()
        with call.holding(8 * self.numel()):
            reduce(call, self, _dims(dim), 8)


@rule(aten.logsumexp)
def logsumexp(call: Call, self: torch.Tensor, dim: _Dims) -> None:
    """The largest values, which of them are infinite, and all exponentials."""
    dims, size, width = _dims(dim), call.result.nbytes, _of(self.dtype)
    with call.holding(size):
        reduce(call, self, dims, width)
        call.touch_together(size, call.result.numel())
        with call.holding(self.nbytes):
            call.output()
            reduce(call, self, dims, width)


_CHUNK = 65536  # elements that a block of threads takes of a list of tensors


def _chunks(tensors: Sequence[torch.Tensor]) -> int:
    """Room for one number for each chunk of the largest tensor, for each of the tensors."""
    counts = [tensor.numel() for tensor in tensors if tensor.numel()]
    return len(counts) * ceil_div(max(counts, default=0), _CHUNK)


def _width(tensors: Sequence[torch.Tensor]) -> int:
    return next((tensor.element_size() for tensor in tensors if tensor.numel()), 0)


@rule(aten._foreach_norm)
def norm_of_each(call: Call, self: Sequence[torch.Tensor]) -> None:
    """One number for each chunk of each tensor, then the results."""
    with call.holding(max(4, _width(self)) * _chunks(self)):
        for index in range(len(self)):
            call.output(index)


@rule(aten._foreach_max)
def largest_of_each(call: Call, self: Sequence[torch.Tensor]) -> None:
    """The results, then one number for each chunk of each tensor."""
    for index in range(len(self)):
        call.output(index)
    call.touch(_width(self) * _chunks(self))
