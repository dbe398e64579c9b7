"""How a program's tensors arrive here as fakes. Knows pickles of tensors; runs nothing."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import cloudpickle  # type: ignore[import-untyped] # which has none
import torch

from ...programs.unpacking import Receiver
from ...torch_internals import storages
from ...torch_internals.fakes import FakeTensor, FakeTensorMode
from .overlay.patches import put

_CLASSES_BY_ID = "_DYNAMIC_CLASS_TRACKER_BY_ID"  # cloudpickle has no public name for it


def receiver_of(mode: FakeTensorMode) -> type[Receiver]:
    """What opens a parcel so that tensors whose values were not sent are fakes on the host; others are real."""

    class FakeReceiver(Receiver):
        def empty(self, size: int) -> torch.UntypedStorage:
            return torch.UntypedStorage(size, device="meta")  # type: ignore[no-untyped-call] # torch's

        def find_class(self, module: str, name: str) -> Any:
            found = super().find_class(module, name)
            return rebuild if found is storages.rebuild_tensor else found

    def rebuild(*arguments: Any) -> torch.Tensor:
        tensor = storages.rebuild_tensor(*arguments)
        return FakeTensor(mode, tensor, torch.device("cpu")) if tensor.device.type == "meta" else tensor

    return FakeReceiver


@contextmanager
def classes_of_its_own() -> Iterator[None]:
    """A script's classes arrive as new ones: cloudpickle would take the user's, and set their methods anew."""
    with ExitStack() as stack:
        put(stack, cloudpickle.cloudpickle, _CLASSES_BY_ID, weakref.WeakValueDictionary())
        yield


def move_to_cuda(tensor: torch.Tensor) -> None:
    """Let a tensor be on the device, and a leaf if it was one."""
    moved = tensor.detach().to("cuda")
    if isinstance(tensor, torch.nn.Parameter):
        moved = torch.nn.Parameter(moved, requires_grad=tensor.requires_grad)
    swap(tensor, moved.requires_grad_(tensor.requires_grad))


def swap(one: torch.Tensor, other: torch.Tensor) -> None:
    """Let each of two tensors be the other one, as ``torch.utils.swap_tensors`` does it.

    That one refuses tensors that somebody holds weakly, as hooks of a recording do.
    """
    one.__class__, other.__class__ = other.__class__, one.__class__
    one.__dict__, other.__dict__ = other.__dict__, one.__dict__
    storages.swap_contents(one, other)


def copied(tensor: torch.Tensor, memo: dict[Any, Any]) -> Any:
    """``copy.deepcopy`` of a fake: in the same mode, and asking for what CUDA's copy asks for.

    A fake parameter is a ``FakeTensor``, of which torch would copy the whole storage, the gradient and the mode.
    """
    if id(tensor) in memo:
        return memo[id(tensor)]
    assert isinstance(tensor, FakeTensor)
    if isinstance(tensor, torch.nn.Parameter):
        copy = torch.nn.Parameter(tensor.data.clone(memory_format=torch.preserve_format), tensor.requires_grad)
        return memo.setdefault(id(tensor), copy)
    memo[id(tensor.fake_mode)] = tensor.fake_mode
    if tensor.device.type == "cuda":
        # torch copies the storage first, unseen by a dispatch mode, and finds here that it has done so.
        storage, copies = tensor.untyped_storage(), memo.setdefault("torch", {})
        if storages.address_of(storage) not in copies:
            made = torch.empty(storage.nbytes(), dtype=torch.uint8, device=tensor.device)
            copies[storages.address_of(storage)] = made.untyped_storage()
    value, tensor.constant = tensor.constant, None  # a real tensor, which can't be copied in a fake mode
    try:
        return torch.Tensor.__deepcopy__(tensor, memo)  # type: ignore[no-untyped-call] # torch's
    finally:
        tensor.constant = value
