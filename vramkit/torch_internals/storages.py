"""torch's private names of storages, and of tensors as storages with a shape. Knows no device and no program."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .names import look_up, mentioned, reader_of

key_of: Callable[[torch.UntypedStorage], int] = reader_of(
    "torch.UntypedStorage._cdata", "programs", "profile on the CPU", "fake engine", fallback=id
)
"""A number that no other storage has while this one lives. torch keeps one Python object for a storage, so its ``id``
will do where C++'s address can't be had."""

address_of: Callable[[torch.UntypedStorage], int] = reader_of("torch.UntypedStorage._cdata", "fake engine")
"""Where C++ has a storage; what torch's own copies know it by."""

untyped: Callable[[torch.storage.TypedStorage], torch.UntypedStorage] = reader_of(
    "torch.storage.TypedStorage._untyped_storage",
    "programs",
    probe=lambda: mentioned("_untyped_storage", torch.storage.TypedStorage.untyped),
)
"""The storage in a typed one. The public method warns that it will go."""


def typed(storage: torch.UntypedStorage, dtype: torch.dtype) -> torch.storage.TypedStorage:
    """A storage as torch's pickles carry it."""
    return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)  # type: ignore[no-untyped-call] # torch's


rebuild_tensor: Callable[..., torch.Tensor] = look_up("torch._utils._rebuild_tensor_v2", "programs")
"""What torch's pickles of tensors call."""

swap_contents: Callable[[torch.Tensor, torch.Tensor], None] = look_up("torch._C._swap_tensor_impl", "fake engine")
"""Lets each of two tensors have what is the other's in C++."""

_tensor_uses: Callable[[torch.Tensor], int] = look_up("torch.Tensor._use_count", "fake engine")
_storage_uses: Callable[[int], int] = look_up("torch._C._storage_Use_Count", "fake engine")


def use_counts(tensor: torch.Tensor) -> tuple[int, int]:
    """How many hold a tensor in C++, and how many its storage."""
    return _tensor_uses(tensor), _storage_uses(address_of(tensor.untyped_storage()))


_indices: Callable[[torch.Tensor], torch.Tensor] = look_up("torch.Tensor._indices", "profile", "batch size on CUDA")
_values: Callable[[torch.Tensor], torch.Tensor] = look_up("torch.Tensor._values", "profile", "batch size on CUDA")


def parts_of_sparse(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices and values of a sparse COO tensor, as they lie in memory; ``values()`` refuses what is not coalesced."""
    return _indices(tensor), _values(tensor)
