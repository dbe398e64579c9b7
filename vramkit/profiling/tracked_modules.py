"""The modules that a recording meets: their names, their places in the tree, and what their calls show.

Knows ``nn.Module`` and holds none of them alive.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..tape.events import Module
from ..torch_internals.modules import (
    children_of,
    class_name,
    compiles_itself,
    in_wrapper,
    parameters_of,
    unwrapped,
    unwrapped_name,
    wrapped_in,
)
from .tensors import parts_of, tensors_in

_OPENED = (
    "What its forward allocates counts for the layer whose result it holds, or for the module around those that it may "
    "be of; what its backward allocates counts as the compiled module's own."
)
_CLOSED = "Nobody knows whose kernel allocates: it all counts as the compiled module's own."


class TrackedModules:
    """Every module that was met, by index; a parent comes before its children."""

    def __init__(self) -> None:
        self.index: dict[int, int] = {}
        """``id(module)`` to index, as long as the module lives."""
        self.calls: list[int] = []
        self.shapes: list[tuple[int, ...]] = []
        self._met: list[Module] = []
        self.renamed: dict[str, str] = {}
        """Names of modules that ran before the model that they are part of, and what they are called since."""
        self.wrappers: set[int] = set()
        """The ids of modules that only call another, whose index is theirs: the other's calls count."""
        self.adopted: set[int] = set()
        """Modules that were taken for models until the model was met that they are part of."""
        self.opened: set[int] = set()
        """Modules that were compiled as a whole, whose generated code tells for which layer it allocates."""
        self._compiled: dict[int, None] = {}
        self._given: set[int] = set()  # models that the user has named
        self._roots: dict[str, int] = {}  # how often a name was asked for
        self._unused: dict[str, list[int]] = {}  # of each class: modules that died and may be made anew, oldest first
        self._gone: set[int] = set()  # models that died: what was in them is not made anew
        self._refs: dict[int, weakref.ref[torch.nn.Module]] = {}
        self._lock = threading.RLock()  # threads that meet modules at the same time take an index each

    def __len__(self) -> int:
        return len(self._met)

    def described(self) -> list[Module]:
        """All of them, with what their calls have shown so far; a parent comes before its children.

        The order is that in which they were met, but for those that ran before their model did: see `places`.
        """
        with self._lock:
            found, places = self.by_index(), self.places()
        ordered = sorted(range(len(found)), key=places.__getitem__)
        return [
            replace(each, parent=places[each.parent] if each.parent >= 0 else -1)
            for each in (found[index] for index in ordered)
        ]

    def by_index(self) -> list[Module]:
        """All of them, in the order in which they were met, with what their calls have shown so far."""
        with self._lock:
            counted = zip(self._met, self.calls, self.shapes, strict=True)
            return [replace(module, calls=calls, output_shape=shape) for module, calls, shape in counted]

    def compiled_note(self) -> str:
        """What to say of modules that ``torch.compile`` has compiled with those in them; empty: there are none."""
        with self._lock:
            entered = {met.parent for met, calls in zip(self._met, self.calls, strict=True) if calls}
            whole = {met.parent for met in self._met} - entered
            found = [each for each in self._compiled if each in whole and self.calls[each]]
            opened = [self._met[each].name for each in found if each in self.opened]
            closed = [self._met[each].name for each in found if each not in self.opened]
        return " ".join(
            f"torch.compile has compiled {_first_of(names)} as a whole: the layers inside are one program, "
            f"whose layers' calls are not seen. {what}"
            for names, what in ((opened, _OPENED), (closed, _CLOSED))
            if names
        )

    def places(self) -> list[int]:
        """Of each module by its index: its place in `described`."""
        with self._lock:
            if not self.renamed:
                return list(range(len(self._met)))
            children: dict[int, list[int]] = {}
            for index, module in enumerate(self._met):
                children.setdefault(module.parent, []).append(index)
            pending, ordered = children.get(-1, [])[::-1], []
            while pending:
                index = pending.pop()
                ordered.append(index)
                pending += children.get(index, [])[::-1]
            places = [0] * len(ordered)
            for place, index in enumerate(ordered):
                places[index] = place
            return places

    def unique_name(self, wanted: str) -> str:
        """A name for a model that no other has: ``"Net"``, ``"Net#2"``."""
        with self._lock:
            number = self._roots[wanted] = self._roots.get(wanted, 0) + 1
        return wanted if number == 1 else f"{wanted}#{number}"

    def meet(self, module: torch.nn.Module, name: str, *, given: bool = False) -> int:
        """Make a model known, with all modules in it; returns its index.

        Args:
            module: the model.
            name: its own.
            given: the program's user has named it so. Else it is only called after its class, until a model that it is
                part of is met.
        """
        with self._lock:
            index = self._meet(module, name, -1, set())
            if given:
                self._given.add(index)
            return index

    def meet_again(self, module: torch.nn.Module) -> int:
        """Let a model stand for one like it that died, such as a loss that is made anew in each step; -1: none did."""
        if children_of(module):
            return -1
        with self._lock:
            return self._take_over(module, lambda index: self._met[index].parent < 0)

    def meet_inside(self, module: torch.nn.Module, parent: int) -> int:
        """Make a module known that a forward has just made; returns its index."""
        with self._lock:
            return self._meet(module, f"{self._met[parent].name}.<{class_name(module)}>", parent, set())

    def meet_somewhere(self, module: torch.nn.Module, model: int) -> int:
        """Let a module stand for one like it that died, anywhere in a model; -1: none did.

        Of several the one that died first, so that those which each block makes take turns as the blocks do.

        Args:
            module: made in a forward of which nobody knows which module it has reached.
            model: index of a module of the model.
        """
        with self._lock:
            root = self.root_of(model)
            return self._take_over(module, lambda index: self.root_of(index) == root)

    def output_shapes(self) -> set[tuple[int, ...]]:
        """The shapes of what whole models return."""
        with self._lock:
            return {shape for met, shape in zip(self._met, self.shapes, strict=True) if met.parent < 0 and shape}

    def root_of(self, index: int) -> int:
        """The index of the model that a module is part of."""
        while (parent := self._met[index].parent) >= 0:
            index = parent
        return index

    def index_below(self, index: int, name: str, kind: str) -> int:
        """The index of a module inside of another one; -1: there is none of this class, or it is not known.

        Args:
            index: of the other one.
            name: that it has in there, with what wraps modules or without; empty: it is the other one.
            kind: name of its class.
        """
        found = (ref() for identity, ref in list(self._refs.items()) if self.index.get(identity) == index)
        module = next((unwrapped(each) for each in found if each is not None), None)
        inside = [] if module is None else wrapped_in(module)
        for part in filter(None, unwrapped_name(name, inside).split(".")):
            child = None if module is None else children_of(module).get(part)
            module = None if child is None else unwrapped(child)
        return -1 if module is None or class_name(module) != kind else self.index.get(id(module), -1)

    def around(self, indices: Sequence[int]) -> int:
        """The innermost module that has all of these in it, or is one of them; -1: there is none."""
        common = list(self._ways(indices[0])) if indices else []
        for index in indices[1:]:
            way = set(self._ways(index))
            common = [each for each in common if each in way]
        return common[0] if common else -1

    def _ways(self, index: int) -> Iterator[int]:
        while index >= 0:
            yield index
            index = self._met[index].parent

    def forget(self) -> None:
        """Let go of the modules; what is known of them stays."""
        self._refs.clear()
        self.index.clear()

    def _meet(self, module: torch.nn.Module, name: str, parent: int, counted: set[int]) -> int:
        wrapper, module = module, unwrapped(module)
        index = self.index.get(id(module), -1)
        if index < 0:
            index = self._meet_unwrapped(module, name, parent, counted)
        while wrapper is not module:
            self._watch(wrapper, index)
            inner = in_wrapper(wrapper)
            if inner is None:  # torch.compile's
                break
            self.wrappers.add(id(wrapper))
            wrapper = inner
        if wrapper is not module or compiles_itself(module):
            self._compiled[index] = None
        return index

    def _meet_unwrapped(self, module: torch.nn.Module, name: str, parent: int, counted: set[int]) -> int:
        index = -1
        if parent >= 0:  # a whole model that is made anew is another one
            index = self._take_over(
                module, lambda dead: (self._met[dead].parent, self._met[dead].name) == (parent, name)
            )
        if index < 0:
            index = self._add(module, name, parent, counted)
        for child_name, child in list(children_of(module).items()):
            if child is None:
                continue
            known = self.index.get(id(child), -1)
            if known < 0:
                self._meet(child, f"{name}.{child_name}", index, counted)
            elif self._met[known].parent < 0 and known != index and known not in self._given:
                self._adopt(known, f"{name}.{child_name}", index)
        return index

    def _add(self, module: torch.nn.Module, name: str, parent: int, counted: set[int]) -> int:
        index = len(self._met)
        self._watch(module, index)
        own = numel = 0
        for parameter in list(parameters_of(module).values()):
            if parameter is not None and id(parameter) not in counted:
                counted.add(id(parameter))
                nbytes, count = _size_of(parameter)
                own += nbytes
                numel += count
        self._met.append(Module(name=name, kind=class_name(module), parent=parent, parameters=own, numel=numel))
        self.calls.append(0)
        self.shapes.append(())
        return index

    def _take_over(self, module: torch.nn.Module, is_fit: Callable[[int], bool]) -> int:
        """Give a module the index of the first fitting one of its class that died; -1: there is none."""
        unused = self._unused.get(class_name(module), [])
        index = next(filter(is_fit, unused), -1)
        if index >= 0:
            unused.remove(index)
            self._watch(module, index)
        return index

    def _adopt(self, index: int, name: str, parent: int) -> None:
        """Let a module that was taken for a model be a part of one, with all that is in it."""
        if self.is_inside(parent, index):
            return
        self.adopted.add(index)
        old = self._met[index].name
        self._met[index] = replace(self._met[index], parent=parent)
        for each, module in enumerate(self._met):
            if each == index or (module.name.startswith(f"{old}.") and self.is_inside(each, index)):
                new = name + module.name[len(old) :]
                self.renamed[module.name] = new
                self._met[each] = replace(module, name=new)

    def name_now(self, name: str) -> str:
        """The name of a tensor by what the module that has it is called now.

        Args:
            name: "Block.up.weight", or "exp_avg of Block.up.weight".
        """
        head, of, tensor = name.rpartition(" of ")
        module, dot, last = tensor.rpartition(".")
        while module in self.renamed:
            module = self.renamed[module]
        return head + of + module + dot + last

    def is_inside(self, index: int, other: int) -> bool:
        """Whether a module is another one, or part of it."""
        while index >= 0 and index != other:
            index = self._met[index].parent
        return index >= 0

    def _watch(self, module: torch.nn.Module, index: int) -> None:
        identity = id(module)
        has_children = bool(children_of(module))

        def died(_ref: object) -> None:
            if self.index.pop(identity, None) is None:
                return
            self._refs.pop(identity, None)
            self.wrappers.discard(identity)
            root = self.root_of(index)
            if root == index:
                self._gone.add(index)
            if not has_children if root == index else root not in self._gone:
                self._unused.setdefault(self._met[index].kind, []).append(index)

        self._gone.discard(index)
        self.index[identity] = index
        self._refs[identity] = weakref.ref(module, died)


def _first_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more modules"


def first_shape(output: Any) -> tuple[int, ...]:
    """Shape of the first tensor in a module's output; empty where there is none."""
    first = next(tensors_in(output), None)
    return () if first is None else tuple(int(size) for size in first.shape)


def _size_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Bytes of a tensor's memory, and how many numbers they are."""
    try:
        parts = parts_of(tensor)
        return sum(part.nbytes for part in parts), sum(part.numel() for part in parts)
    except Exception:  # a lazy module's parameter has no shape yet, and wrappers raise what they like
        return 0, 0
