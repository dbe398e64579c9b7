"""What ``copy.deepcopy`` makes of a fake: to torch a parameter that is fake is no ``nn.Parameter``, and the storages
that it would copy have no memory. Knows what torch's own ``__deepcopy__`` take.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from .patches import replace


def install(stack: ExitStack) -> None:
    """Replace it."""
    replace(stack, FakeTensor, "__deepcopy__", _copy)


def _copy(tensor: torch.Tensor, memo: dict[Any, Any]) -> torch.Tensor:
    known: torch.Tensor | None = memo.get(id(tensor))
    if known is not None:
        return known
    with torch.no_grad():
        if isinstance(tensor, torch.nn.Parameter):
            copied: torch.Tensor = torch.nn.Parameter(tensor.detach().clone(), tensor.requires_grad)
        else:
            copied = _copy_with_storage(tensor, memo).requires_grad_(tensor.requires_grad)
            copied.grad = copy.deepcopy(tensor.grad, memo)
            for name, value in vars(tensor).items():
                if name not in vars(copied):
                    setattr(copied, name, copy.deepcopy(value, memo))
    memo[id(tensor)] = copied
    return copied


def _copy_with_storage(tensor: torch.Tensor, memo: dict[Any, Any]) -> torch.Tensor:
    """A tensor with the whole of its storage, of which there is one copy for all that share it."""
    if not tensor.is_leaf:
        raise RuntimeError("Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol")
    storages = memo.setdefault("torch", {})
    storage = tensor.untyped_storage()
    if storage._cdata not in storages:
        storages[storage._cdata] = tensor.new_empty(storage.nbytes(), dtype=torch.uint8)
    whole: torch.Tensor = storages[storage._cdata]
    copied = tensor.new_empty([])
    return copied.set_(whole.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
