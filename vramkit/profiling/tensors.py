"""The tensors in a value: in containers, and inside sparse or wrapped ones. Knows no model and no recording."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..torch_internals.storages import parts_of_sparse

_BY_ROWS = torch.Tensor.crow_indices, torch.Tensor.col_indices, torch.Tensor.values
_BY_COLUMNS = torch.Tensor.ccol_indices, torch.Tensor.row_indices, torch.Tensor.values
_COMPRESSED = {
    torch.sparse_csr: _BY_ROWS,
    torch.sparse_bsr: _BY_ROWS,
    torch.sparse_csc: _BY_COLUMNS,
    torch.sparse_bsc: _BY_COLUMNS,
}


Row = tuple[int, Any]
"""What the rows of a tensor have in common with those of another: how many elements, and the type if that is one."""


def row_of(shape: Sequence[int], dtype: torch.dtype | None) -> Row:
    """The kind of a tensor's rows. A batch and the data set that it is from have the same."""
    elements = math.prod(shape[1:])
    return elements, dtype if elements == 1 else None


def shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """A tensor's shape; empty for a lazy module's parameter, which has none yet."""
    return () if torch.nn.parameter.is_lazy(tensor) else tuple(tensor.shape)


def tensors_in(value: Any, depth: int = 8) -> Iterator[torch.Tensor]:
    """Every tensor in nested tuples, lists and dicts; not in other containers, which may do anything when asked."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, (tuple, list, dict)):
        for item in list(dict.values(value)) if isinstance(value, dict) else value:
            yield from tensors_in(item, depth - 1)


def parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors with memory of their own that one is made of; of a plain one itself.

    Those of a sparse tensor; what `torch.func` has wrapped, as it was given: all samples of a mapped batch; and of a
    subclass that wraps others: a shard of a distributed one, the packed values and the scales of a quantised one. A
    subclass says what it wraps by ``__tensor_flatten__``, as ``torch.compile`` asks.
    """
    flatten = getattr(type(tensor), "__tensor_flatten__", None)
    try:
        tensor = torch.func.debug_unwrap(tensor)
        if flatten is not None:
            inner = [getattr(tensor, name) for name in flatten(tensor)[0]]
            return [part for each in inner if isinstance(each, torch.Tensor) for part in parts_of(each)]
        if tensor.layout is torch.strided:
            return [tensor]
        if tensor.layout in _COMPRESSED:
            return [part(tensor) for part in _COMPRESSED[tensor.layout]]
        return list(reversed(parts_of_sparse(tensor)))
    except Exception:  # another layout; a wrapper's own code may raise whatever it likes
        return []
