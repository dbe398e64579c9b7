"""The modules that a recording meets: their names, their places in the tree, and what their calls show.

Knows ``nn.Module`` and holds none of them alive.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import torch

from ..events import Module
from .holdings import tensors_in


class Modules:
    """Every module that was met, by index; a parent comes before its children."""

    def __init__(self) -> None:
        self.index: dict[int, int] = {}
        """``id(module)`` to index, as long as the module lives."""
        self.calls: list[int] = []
        self.shapes: list[tuple[int, ...]] = []
        self._met: list[Module] = []
        self._deaths: list[weakref.ref[torch.nn.Module]] = []

    def __len__(self) -> int:
        return len(self._met)

    def described(self) -> list[Module]:
        """All of them, with what their calls have shown so far."""
        counted = zip(self._met, self.calls, self.shapes, strict=True)
        return [replace(module, calls=calls, output_shape=shape) for module, calls, shape in counted]

    def unique_name(self, wanted: str) -> str:
        """A name for a model that no other has: ``"Net"``, ``"Net#2"``."""
        taken = {module.name for module in self._met if module.parent < 0}
        unique, number = wanted, 1
        while unique in taken:
            number += 1
            unique = f"{wanted}#{number}"
        return unique

    def meet(self, module: torch.nn.Module, name: str) -> int:
        """Make a model known, with all modules in it; returns its index."""
        return self._meet(module, name, -1, set())

    def meet_inside(self, module: torch.nn.Module, parent: int) -> int:
        """Make a module known that a forward has just made; returns its index."""
        return self._meet(module, f"{self._met[parent].name}.<{type(module).__name__}>", parent, set())

    def forget(self) -> None:
        """Let go of the modules; what is known of them stays."""
        self._deaths.clear()
        self.index.clear()

    def _meet(self, module: torch.nn.Module, name: str, parent: int, counted: set[int]) -> int:
        index = len(self._met)
        identity = id(module)
        self.index[identity] = index
        self._deaths.append(weakref.ref(module, lambda _ref: self.index.pop(identity, None)))
        own = 0
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in counted:
                counted.add(id(parameter))
                own += _nbytes(parameter)
        self._met.append(Module(name=name, kind=type(module).__name__, parent=parent, parameters=own))
        self.calls.append(0)
        self.shapes.append(())
        for child_name, child in module._modules.items():
            if child is not None and id(child) not in self.index:
                self._meet(child, f"{name}.{child_name}", index, counted)
        return index


def first_shape(output: Any) -> tuple[int, ...]:
    """Shape of the first tensor in a module's output; empty where there is none."""
    first = next(tensors_in(output), None)
    return () if first is None else tuple(first.shape)


def _nbytes(tensor: torch.Tensor) -> int:
    try:
        return tensor.numel() * tensor.element_size()
    except (RuntimeError, ValueError):  # a lazy module's parameter has no shape yet
        return 0
