"""A packed program's objects, made again. Knows how tensors arrive; `vramkit.programs.packing` knows what was sent."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..torch_internals import storages
from . import device_names
from .batches import unbacked
from .program import Program, functions_of


@dataclass(frozen=True)
class Opened:
    """What a parcel held."""

    program: Program
    on_cuda: list[torch.Tensor]
    """Tensors that the program had on a CUDA device, beside models and batch; now they are on the CPU."""
    owners: frozenset[int]
    """Ids of all models and optimizers in it."""


def unpack(content: bytes, receiver: type[Receiver] | None = None) -> Opened:
    """Make the objects of a program again, on the CPU.

    Args:
        content: of a parcel.
        receiver: how tensors are made; None: without values they are zeros that take no memory.
    """
    received = (receiver or Receiver)(io.BytesIO(content))
    program, says_cpu = received.load()
    assert isinstance(program, Program)
    if says_cpu:
        for function in functions_of(program):
            device_names.become_cuda(function)
    kinds = (torch.nn.Module, torch.optim.Optimizer)
    made = [each for each in received.memo.copy().values() if isinstance(each, kinds)]
    for each in made:
        _note_what_it_records(type(each))
    owners = frozenset(map(id, made))
    return Opened(program, received.on_cuda, owners)


class Receiver(pickle.Unpickler):
    """Reads what `pack` wrote."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.on_cuda: list[torch.Tensor] = []
        """Tensors that were on a CUDA device and belong to no model and no batch."""
        self._storages: dict[int, torch.UntypedStorage] = {}

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return partial(found, self.on_cuda) if found is arrive_on_cuda else found

    def persistent_load(self, value: Any) -> object:
        _, key, size, dtype, data = value
        if key not in self._storages:
            self._storages[key] = (
                torch.frombuffer(bytearray(data), dtype=torch.uint8).untyped_storage() if data else self.empty(size)
            )
        return storages.typed(self._storages[key], dtype)

    def empty(self, size: int) -> torch.UntypedStorage:
        """A storage whose values were not sent."""
        return unbacked(size)


def _note_what_it_records(kind: type) -> None:
    """A model of transformers says when it is constructed which of its parts' outputs it can return, as hidden states;
    here it was not constructed, and would return None.
    """
    recorded = getattr(kind, "_can_record_outputs", None)
    for name in ("transformers.utils.output_capturing", "transformers.utils.generic"):  # the latter: older versions
        registry = getattr(sys.modules.get(name), "_CAN_RECORD_REGISTRY", None)
        if recorded is not None and isinstance(registry, dict):
            dict.__setitem__(registry, str(kind), recorded)


def arrive_on_cuda(arrived: list[torch.Tensor], make: Callable[..., torch.Tensor], *arguments: object) -> torch.Tensor:
    """Make a tensor that was on a CUDA device, and note it; the list is the receiver's, the rest is in the parcel."""
    tensor = make(*arguments)
    arrived.append(tensor)
    return tensor
