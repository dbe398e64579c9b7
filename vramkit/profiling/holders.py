"""What holds tensors: models and optimizers, themselves held weakly, with the lines of the program that use them.

What the program drops must die as it would have. Knows ``nn.Module`` and ``torch.optim.Optimizer``; not when to look.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..torch_internals.modules import children_of, unwrapped_name, wrapped_in
from ..torch_internals.sharding import shards
from .contents import Found, attributes_of, reached
from .lines import Line
from .tensors import shape_of

_MAX_ATTRIBUTES = 1000  # objects that one parameter or module is looked into for
_OWNERS = (torch.nn.Module, torch.optim.Optimizer)
_GONE = weakref.ref(torch.empty(0, device="meta"))
"""Stands for a tensor that is not held at the moment."""


class Model:
    """The tensors of one model, or the loose parameters of an optimizer, with their names; held weakly."""

    def __init__(
        self,
        index: int,
        name: str,
        model: torch.nn.Module | None,
        parameters: Sequence[torch.Tensor] = (),
        *,
        added_by: Line,
        names: Sequence[str] | None = None,
    ) -> None:
        self.index = index
        self.added_by = added_by
        self.lines: set[Line] = set()
        """The lines that have run it."""
        self.is_watched = False
        self.is_trained = False
        """Whether a gradient of it was seen, or an optimizer has any of its parameters."""
        self.shapes: tuple[tuple[int, ...], ...] = ()
        """Of its parameters, when it was last looked at."""
        self._name = name
        self._model = None if model is None else weakref.ref(model)
        self.parameters = [weakref.ref(parameter) for parameter in parameters]
        self.parameter_names: Sequence[str] = (
            [f"{name}.{index}" for index in range(len(parameters))] if names is None else names
        )
        self.buffers: list[weakref.ref[torch.Tensor]] = []
        self.buffer_names: Sequence[str] = []
        self.carried: list[weakref.ref[torch.Tensor]] = []
        """Tensors that its parameters have as attributes."""
        self.carried_names: Sequence[str] = []
        self._kept: list[weakref.ref[torch.Tensor]] = []
        self._kept_names: list[str] = []
        self._keep_attributes()
        self.refresh()

    def model(self) -> torch.nn.Module | None:
        """The model, if it is one and still there."""
        return None if self._model is None else self._model()

    def is_alive(self) -> bool:
        """Whether the model is still there; loose parameters count as there."""
        return self._model is None or self._model() is not None

    def is_of_others(self, line: Line) -> bool:
        """Whether only other lines run it, and one of them trains: what it holds changes under this one's eyes."""
        return line not in self.lines and self._others_train(line)

    def is_alone_with(self, line: Line) -> bool:
        """Whether a line runs it, and no other that trains does."""
        return line in self.lines and not self._others_train(line)

    def is_nobodys(self, line: Line) -> bool:
        """Whether no other line is known to run it, or none that trains."""
        if self.lines:
            return not self._others_train(line)
        return self.added_by is line or not self.added_by.is_alive()

    def _others_train(self, line: Line) -> bool:
        return any(other is not line and other.trains and other.is_alive() for other in list(self.lines))

    def is_among(self, ids: set[int]) -> bool:
        """Whether any of its parameters or modules is among objects that are given by their ids."""
        # One for all: a reducer writes gradients of a model's parameters that its backward does not reach.
        if not ids:
            return False
        model = None if self._model is None else self._model()
        modules = () if model is None else _modules_of(model)
        return any(id(each) in ids for each in (*self.live_parameters(), *modules))

    def sample(self) -> list[torch.Tensor | None]:
        """The first and the last of its tensors."""
        refs = (*self.parameters[:1], *self.parameters[-1:], *self.buffers[:1], *self.buffers[-1:])
        return [ref() for ref in refs]

    def named(self) -> list[tuple[str, torch.Tensor]]:
        """Its parameters and buffers that are there, by their names within the model."""
        pairs = (
            *zip(self.parameter_names, self.parameters, strict=False),  # another thread may look at the model again
            *zip(self.buffer_names, self.buffers, strict=False),
        )
        return [(name[len(self._name) + 1 :], tensor) for name, ref in pairs if (tensor := ref()) is not None]

    def live_parameters(self) -> list[torch.Tensor | None]:
        """The parameters, None for one that is gone."""
        return [ref() for ref in self.parameters]

    @contextmanager
    def let_go(self, *tensors: torch.Tensor) -> Iterator[None]:
        """Hold none of these tensors meanwhile, not even weakly."""
        held = [
            (refs, index, tensor)
            for refs in (self.parameters, self.buffers, self.carried, self._kept)
            for index, ref in enumerate(refs)
            for tensor in tensors
            if ref() is tensor
        ]
        for refs, index, _ in held:
            refs[index] = _GONE
        try:
            yield
        finally:
            for refs, index, tensor in held:
                refs[index] = weakref.ref(tensor)

    def refresh(self) -> None:
        """Look at the model again: parameters may have come and gone."""
        model = None if self._model is None else self._model()
        if model is None:
            return
        try:
            shard_of = shards()
            inside = wrapped_in(model)
            every = [*model.named_parameters()]
            named = [(unwrapped_name(name, inside), shard_of.get(id(each), each)) for name, each in every]
            held = [(unwrapped_name(name, inside), each) for name, each in list(model.named_buffers())]
        except RuntimeError:  # another thread changes it: what was known holds
            return
        seen: set[int] = set()  # what parameters share, such as the mesh of all shards, is looked into once
        carried = [each for name, parameter in named for each in _carried_by(f"{self._name}.{name}", parameter, seen)]
        self.shapes = tuple(shape_of(parameter) for _, parameter in named)
        # Other threads read both at a time.
        self.parameters, self.parameter_names = (
            [weakref.ref(parameter) for _, parameter in named],
            _again(self.parameter_names, [f"{self._name}.{name}" for name, _ in named]),
        )
        self.carried, self.carried_names = (
            [weakref.ref(tensor) for _, tensor in carried],
            _again(self.carried_names, [name for name, _ in carried]),
        )
        self.buffers, self.buffer_names = (
            [weakref.ref(buffer) for _, buffer in held] + self._kept,
            _again(self.buffer_names, [*(f"{self._name}.{name}" for name, _ in held), *self._kept_names]),
        )

    def _keep_attributes(self) -> None:
        """Tensors that its modules have as attributes before anything runs: constants, buffers but for the name."""
        model = None if self._model is None else self._model()
        if model is None:
            return
        held = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        inside = wrapped_in(model)
        for name, module in model.named_modules():
            prefix = f"{self._name}.{unwrapped_name(name, inside)}".removesuffix(".")
            for each in _tensors_under(attributes_of(prefix, module), _is_container):
                if id(each[1]) not in held:
                    self._kept.append(weakref.ref(each[1]))
                    self._kept_names.append(each[0])


def _again(old: Sequence[str], new: list[str]) -> Sequence[str]:
    """The old names, if they are the same: a scan that says what the last one said is kept once."""
    return old if old == new else new


def _carried_by(name: str, parameter: torch.Tensor, seen: set[int]) -> list[tuple[str, torch.Tensor]]:
    """Tensors that a parameter has as attributes, directly or inside an object, such as a quantised weight's scales."""
    return _tensors_under(attributes_of(name, parameter), _is_no_owner, seen) if vars(parameter) else []


def _tensors_under(
    items: Iterable[tuple[str, Any]], enters: Callable[[Any], bool], seen: set[int] | None = None
) -> list[tuple[str, torch.Tensor]]:
    def look(found: Found) -> tuple[bool, None]:
        return enters(found.value), None

    found = reached(items, look, _MAX_ATTRIBUTES, seen)
    return [(each.name, each.value) for each in found if isinstance(each.value, torch.Tensor)]


def _is_no_owner(value: Any) -> bool:
    """Whether what is inside is a parameter's alone: not what a model, an optimizer or an object with one of them has,
    as an engine that shards a model has buffers, and every parameter has the engine.
    """
    return not any(issubclass(type(each), _OWNERS) for each in (value, *(item for _, item in attributes_of("", value))))


def _is_container(value: Any) -> bool:
    return issubclass(type(value), (list, tuple, dict))


def _modules_of(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    yield model
    for child in list(children_of(model).values()):
        if child is not None:
            yield from _modules_of(child)


class Optimizer:
    """An optimizer, held weakly."""

    def __init__(self, optimizer: weakref.ref[torch.optim.Optimizer], loose: Model) -> None:
        self.optimizer = optimizer
        self.loose = loose
        """Its parameters that no model has; and the lines that have run its step."""
        self.names: list[str] = []
        """One for each tensor of its state."""
        self.steps = 0
        """That have begun."""
        self.trains: frozenset[str] = frozenset()
        """Names of its parameters, when it was last looked at."""
