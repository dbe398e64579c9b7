"""The tensors in a value: in containers, and behind sparse ones. Knows no model and no recording."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..torch_internals.storages import parts_of_sparse


def tensors_in(value: Any, depth: int = 8) -> Iterator[torch.Tensor]:
    """Every tensor in nested tuples, lists and dicts; not in other containers, which may do anything when asked."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, (tuple, list, dict)):
        for item in list(dict.values(value)) if isinstance(value, dict) else value:
            yield from tensors_in(item, depth - 1)


def parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The dense tensors of a sparse one; of a dense one itself."""
    if tensor.layout is torch.strided:
        return [tensor]
    try:
        return list(reversed(parts_of_sparse(tensor)))
    except Exception:  # another layout
        return []
