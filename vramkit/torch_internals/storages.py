"""torch's private names of storages, and of tensors as storages with a shape. Knows no device and no program."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .names import look_up, reader_of

key_of: Callable[[torch.UntypedStorage], int] = reader_of(
    "torch.UntypedStorage._cdata", "programs", "profile on the CPU", "fake engine", fallback=id
)
"""A number that no other storage has while this one lives. torch keeps one Python object for a storage, so its ``id``
will do where C++'s address can't be had."""

_indices: Callable[[torch.Tensor], torch.Tensor] = look_up("torch.Tensor._indices", "profile", "batch size on CUDA")
_values: Callable[[torch.Tensor], torch.Tensor] = look_up("torch.Tensor._values", "profile", "batch size on CUDA")


def parts_of_sparse(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices and values of a sparse COO tensor, as they lie in memory; ``values()`` refuses what is not coalesced."""
    return _indices(tensor), _values(tensor)
