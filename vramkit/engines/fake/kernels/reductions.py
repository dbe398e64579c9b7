"""Reductions over so much that several blocks of threads share a result: the buffer in which they meet.

How torch spreads a reduction over a card (``setReduceConfig`` in ATen/native/cuda/Reduce.cuh) decides whether there is
one, and how large it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ....gpus import GPU
from .call import Call
from .copies import size_of
from .registry import rule

aten = torch.ops.aten
_MAX_THREADS, _WARP = 512, 32
_FEW_VALUES, _MANY_VALUES = 16, 256  # that a thread adds up, at least and at most


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


def _power(number: int, most: int) -> int:
    """The largest power of two up to a number, and up to a limit."""
    return most if number >= most else 1 << max(number.bit_length() - 1, 0)


def _up(number: int, divisor: int) -> int:
    return -(-number // divisor)


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
    most = _MAX_THREADS // vector
    block_width = min(_power(width, most), _WARP)
    block_height = min(_power(height, most), most // block_width)
    block_width = min(_power(width, most), most // block_height)
    step_input, step_output = (block_width, 1) if along else (1, block_width)
    values = _up(inputs, step_input)
    across = values >= block_height * _FEW_VALUES or values >= _MANY_VALUES
    if across:
        step_input *= block_height
    else:
        step_output *= block_height
    values = _up(inputs, step_input)
    grid = _up(outputs // vector, step_output)
    room = gpu.multiprocessors * (gpu.threads_per_multiprocessor // (block_width * block_height))
    if not across or values < _MANY_VALUES or grid > room:
        return ()
    blocks = max(min(_up(room, grid), _up(values, _FEW_VALUES)), _up(values, _MANY_VALUES))
    if blocks <= 1:
        return ()
    size = accumulated * outputs * blocks
    return (size if along else size * block_width * vector), 4 * grid


def _dims(value: Any) -> Sequence[int]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else value


# operator -> position of its argument "dim", and bytes of an intermediate value (0: by the type)
_OVER = {
    aten._is_any_true: (1, 1), aten._is_all_true: (1, 1),
    aten.sum: (1, 0), aten.mean: (1, 0), aten.nansum: (1, 0), aten.prod: (1, 0), aten.amax: (1, 0), aten.amin: (1, 0),
    aten.linalg_vector_norm: (2, 0), aten.norm: (2, 0), aten.max: (1, 0), aten.min: (1, 0), aten.any: (1, 1),
    aten.all: (1, 1), aten.var: (1, 16), aten.std: (1, 16), aten.var_mean: (1, 16), aten.std_mean: (1, 16),
    aten.argmax: (1, 16), aten.argmin: (1, 16), aten.aminmax: (9, 0),
}  # fmt: skip
_SUMS = {aten.sum, aten.nansum, aten.prod, aten.mean}
_EXTREMES = {aten.amax, aten.amin, aten.max, aten.min}
_HALVES = (torch.float16, torch.bfloat16)


@rule(*_OVER)
def total(call: Call) -> None:
    """The results, the input in the type that a sum has, then buffer and semaphores."""
    tensor, operator = call.args[0], call.func.overloadpacket
    position, width = _OVER[operator]
    has_several = isinstance(call.result, tuple)
    for index in range(len(call.result) if has_several else 1):
        call.output(index)
    dims = call.argument(position, "dim")
    if isinstance(dims, torch.Tensor):
        return  # the larger of two tensors: no reduction
    if operator is aten.aminmax:
        width = 2 * tensor.element_size()
    elif has_several and not width:
        width = 16  # a value and its place
    if operator is aten.prod and torch.is_grad_enabled():
        call.assume("The backward of prod depends on where there are zeros", 8 * size_of(tensor))
    kind = tensor.dtype
    if operator in _SUMS and kind != call.result.dtype and kind not in _HALVES:
        kind = call.result.dtype
    if not width:
        width = tensor.element_size() if operator in _EXTREMES else _of(kind)
    with call.holding(*cast(tensor, kind)):
        reduce(call, tensor, _dims(dims), width, fast=width < 16)


def cast(tensor: torch.Tensor, kind: torch.dtype) -> list[int]:
    """Bytes of the copy in another type, if it is another."""
    return [] if tensor.dtype == kind else [tensor.numel() * kind.itemsize]


def _of(kind: torch.dtype) -> int:
    return kind.itemsize if kind.is_complex else max(4, kind.itemsize)


def reduce(call: Call, tensor: torch.Tensor, dims: Sequence[int], width: int, *, fast: bool = True) -> None:
    """What a reduction takes for its blocks of threads to meet in."""
    call.touch_together(*buffers(tensor, dims, call.gpu, width, fast=fast))


@rule(aten.count_nonzero)
def count_nonzero(call: Call) -> None:
    """What is not zero; their sum, of numbers of eight bytes."""
    tensor = call.args[0]
    dims = call.argument(1, "dim")
    with call.holding(tensor.numel()):
        call.output()
        with call.holding(8 * tensor.numel()):
            reduce(call, tensor, _dims(dims), 8)


@rule(aten.logsumexp)
def logsumexp(call: Call) -> None:
    """The largest values, which of them are infinite, and all exponentials."""
    tensor, dims = call.args[0], _dims(call.argument(1, "dim"))
    size, width = call.result.numel() * call.result.element_size(), _of(tensor.dtype)
    with call.holding(size):
        reduce(call, tensor, dims, width)
        call.touch_together(size, call.result.numel())
        with call.holding(tensor.numel() * tensor.element_size()):
            call.output()
            reduce(call, tensor, dims, width)


_CHUNK = 65536  # elements that a block of threads takes of a list of tensors


@rule(aten._foreach_norm, aten._foreach_max)
def of_each(call: Call) -> None:
    """One number for each chunk of each tensor, before the results; after them for the largest values."""
    tensors = [tensor for tensor in call.args[0] if tensor.numel()]
    chunks = max((_up(tensor.numel(), _CHUNK) for tensor in tensors), default=0)
    norms = call.func.overloadpacket is aten._foreach_norm
    width = max(4, tensors[0].element_size()) if norms and tensors else tensors[0].element_size() if tensors else 0
    size = width * len(tensors) * chunks
    with call.holding(*[size] * norms):
        for index in range(len(call.args[0])):
            call.output(index)
    call.touch(*[size] * (not norms))
