"""The modules that a recording meets: their names, their places in the tree, and what their calls show.

Knows ``nn.Module`` and holds none of them alive.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import replace
from typing import Any

import torch

from ..tape.events import Module
from ..torch_internals.modules import children_of, parameters_of
from .tensors import parts_of, tensors_in


class TrackedModules:
    """Every module that was met, by index; a parent comes before its children."""

    def __init__(self) -> None:
        self.index: dict[int, int] = {}
        """``id(module)`` to index, as long as the module lives."""
        self.calls: list[int] = []
        self.shapes: list[tuple[int, ...]] = []
        self._met: list[Module] = []
        self._roots: dict[str, int] = {}  # how often a name was asked for
        self._unused: dict[tuple[int, str], list[int]] = {}  # (parent, class) of modules without children that died
        self._refs: dict[int, weakref.ref[torch.nn.Module]] = {}
        self._lock = threading.RLock()  # threads that meet modules at the same time take an index each

    def __len__(self) -> int:
        return len(self._met)

    def described(self) -> list[Module]:
        """All of them, with what their calls have shown so far."""
        with self._lock:
            counted = zip(self._met, self.calls, self.shapes, strict=True)
            return [replace(module, calls=calls, output_shape=shape) for module, calls, shape in counted]

    def unique_name(self, wanted: str) -> str:
        """A name for a model that no other has: ``"Net"``, ``"Net#2"``."""
        with self._lock:
            number = self._roots[wanted] = self._roots.get(wanted, 0) + 1
        return wanted if number == 1 else f"{wanted}#{number}"

    def meet(self, module: torch.nn.Module, name: str) -> int:
        """Make a model known, with all modules in it; returns its index."""
        with self._lock:
            return self._meet(module, name, -1, set())

    def meet_again(self, module: torch.nn.Module, parent: int = -1) -> int:
        """Let a module stand for one like it that died, such as a loss that is made anew in each step; -1: none did."""
        with self._lock:
            unused = self._unused.get((parent, type(module).__name__))
            if not unused or children_of(module):
                return -1
            index = unused.pop()
            self._watch(module, index)
        return index

    def meet_inside(self, module: torch.nn.Module, parent: int) -> int:
        """Make a module known that a forward has just made; returns its index."""
        with self._lock:
            again = self.meet_again(module, parent)
            return (
                again
                if again >= 0
                else self._meet(module, f"{self._met[parent].name}.<{type(module).__name__}>", parent, set())
            )

    def output_shapes(self) -> set[tuple[int, ...]]:
        """The shapes of what whole models return."""
        with self._lock:
            return {shape for met, shape in zip(self._met, self.shapes, strict=True) if met.parent < 0 and shape}

    def root_of(self, index: int) -> int:
        """The index of the model that a module is part of."""
        while (parent := self._met[index].parent) >= 0:
            index = parent
        return index

    def forget(self) -> None:
        """Let go of the modules; what is known of them stays."""
        self._refs.clear()
        self.index.clear()

    def _meet(self, module: torch.nn.Module, name: str, parent: int, counted: set[int]) -> int:
        index = len(self._met)
        self._watch(module, index)
        own = 0
        for parameter in list(parameters_of(module).values()):
            if parameter is not None and id(parameter) not in counted:
                counted.add(id(parameter))
                own += _nbytes(parameter)
        self._met.append(Module(name=name, kind=type(module).__name__, parent=parent, parameters=own))
        self.calls.append(0)
        self.shapes.append(())
        for child_name, child in list(children_of(module).items()):
            if child is not None and id(child) not in self.index:
                self._meet(child, f"{name}.{child_name}", index, counted)
        return index

    def _watch(self, module: torch.nn.Module, index: int) -> None:
        identity = id(module)
        has_children = bool(children_of(module))

        def died(_ref: object) -> None:
            if self.index.pop(identity, None) is None:
                return
            self._refs.pop(identity, None)
            if not has_children:
                met = self._met[index]
                self._unused.setdefault((met.parent, met.kind), []).append(index)

        self.index[identity] = index
        self._refs[identity] = weakref.ref(module, died)


def first_shape(output: Any) -> tuple[int, ...]:
    """Shape of the first tensor in a module's output; empty where there is none."""
    first = next(tensors_in(output), None)
    return () if first is None else tuple(int(size) for size in first.shape)


def _nbytes(tensor: torch.Tensor) -> int:
    try:
        return sum(part.nbytes for part in parts_of(tensor))
    except Exception:  # a lazy module's parameter has no shape yet, and wrappers raise what they like
        return 0
