"""What models and optimizers hold: where their parameters, buffers, gradients and states lie at a moment.

Knows ``nn.Module`` and ``torch.optim.Optimizer`` and holds them weakly: what the program drops must die as it would
have. Knows no hooks; `vramkit.profiling.marks` says when to look.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from ..tape.events import Category


class Holdings:
    """The tensors of every model and optimizer that is known.

    Args:
        locate: where a tensor's memory lies, in the terms of the source's events; 0 where it has none. It may fail with
            RuntimeError for tensors that have no memory of their own.
        found: called with the category, one address a tensor, and one name a tensor (or none).
    """

    def __init__(
        self,
        locate: Callable[[torch.Tensor], int],
        found: Callable[[Category, list[int], Sequence[str]], None],
    ) -> None:
        self._locate = locate
        self._found = found
        self._roots: list[_Root] = []
        self._loose: list[_Root] = []  # parameters that an optimizer has and no model
        self._optimizers: list[weakref.ref[torch.optim.Optimizer]] = []
        self._state_names: list[list[str]] = []
        self._samples: dict[int, list[int]] = {}
        self._handles = ExitStack()

    def add_model(self, name: str, model: torch.nn.Module) -> None:
        """Make a model known."""
        root = _Root(name, model)
        self._roots = [each for each in self._roots if each.is_alive()]
        if not root.parameters and not root.buffers:
            return  # a loss or an activation, which programs make anew in every step
        self._roots.append(root)
        for parameter, parameter_name in zip(root.live_parameters(), root.parameter_names, strict=True):
            if parameter is not None and parameter.requires_grad and parameter._post_accumulate_grad_hooks:
                # Such a hook may use up the gradient at once, so that no later look would find it.
                handle = parameter.register_hook(partial(self._look_at_gradient, parameter_name))  # type: ignore[no-untyped-call] # torch's
                self._handles.callback(handle.remove)

    def add_optimizer(self, optimizer: torch.optim.Optimizer) -> int:
        """Make an optimizer known, if it isn't; returns its index."""
        for index, known in enumerate(self._optimizers):
            if known() is optimizer:
                return index
        held = {id(ref()) for root in self._roots for ref in root.parameters}
        parameters = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in held]
        if parameters:
            self._loose.append(_Root(type(optimizer).__name__, None, parameters))
        self._optimizers.append(weakref.ref(optimizer))
        self._state_names.append([])
        return len(self._optimizers) - 1

    def detach(self) -> None:
        """Detach every hook from the parameters."""
        self._handles.close()

    def look_once_more(self) -> None:
        """Look at everything for the last time; parameters may have come and gone."""
        for root in self._roots:
            root.refresh()
        self.look_at_all()

    def look_at_all(self) -> None:
        """Look at every parameter, buffer, gradient and state that is known."""
        self.look_at_models()
        self.look_at_gradients()
        for index in range(len(self._optimizers)):
            self.look_at_state(index)

    def _look_at_gradient(self, name: str, grad: torch.Tensor) -> None:
        self._found(Category.GRADIENT, self.locate_all([grad]), [name])

    def look_at_models(self, *, again: bool = True) -> None:
        """Look at parameters and buffers; unless ``again``, only where some have moved."""
        for root in (*self._roots, *self._loose):
            if not (self._moved(id(root), root.sample()) or again):
                continue
            if root.parameters:
                self._found(Category.PARAMETER, self.locate_all(root.live_parameters()), root.parameter_names)
            if root.buffers:
                self._found(Category.BUFFER, self.locate_all([ref() for ref in root.buffers]), root.buffer_names)

    def has_gradients(self) -> bool:
        """Whether the first or the last parameter of any model has a gradient; looking at all would cost too much."""
        return any(
            parameter is not None and parameter.grad is not None
            for root in (*self._roots, *self._loose)
            for parameter in (ref() for ref in (*root.parameters[:1], *root.parameters[-1:]))
        )

    def look_at_gradients(self) -> None:
        """Look at every parameter's gradient."""
        for root in (*self._roots, *self._loose):
            gradients = [None if p is None else p.grad for p in root.live_parameters()]
            if any(gradient is not None for gradient in gradients):
                names = root.parameter_names
                for name, gradient in zip(root.parameter_names, tuple(gradients), strict=True):
                    if gradient is not None and gradient.layout is not torch.strided:
                        parts = _parts(gradient)
                        gradients += parts
                        names = [*names, *[name] * len(parts)]
                self._found(Category.GRADIENT, self.locate_all(gradients), names)

    def look_at_state(self, index: int, *, again: bool = True) -> None:
        """Look at what an optimizer keeps; unless ``again``, only where some of it is new."""
        optimizer = self._optimizers[index]()
        if optimizer is None or not (self._moved(id(optimizer), _sample_of(optimizer)) or again):
            return
        tensors: list[torch.Tensor | None] = []
        for state in optimizer.state.values():
            for value in state.values() if isinstance(state, dict) else (state,):
                # Nearly all are plain tensors; a generator for each would be most of this scan's time.
                if type(value) is torch.Tensor:
                    tensors.append(value)
                else:
                    tensors += tensors_in(value)
        names = self._state_names[index]
        if len(names) != len(tensors):  # the first step, or one that made more state
            names = self._state_names[index] = self._state_names_of(optimizer)
        for group in optimizer.param_groups:
            tensors += tensors_in([value for key, value in group.items() if key != "params"])
        if tensors:
            self._found(Category.OPTIMIZER_STATE, self.locate_all(tensors), names)

    def _moved(self, key: int, sample: Sequence[torch.Tensor | None]) -> bool:
        """Whether the first and the last tensors of many lie elsewhere than when this was asked last.

        Assumes that a program moves all of them or none: looking at each in every step would be a third of a profile's
        cost. Wrong for an optimizer that replaces only some states between; those are seen at the next whole scan.
        """
        found = [len(sample), *self.locate_all(sample)]
        moved = found != self._samples.get(key)
        self._samples[key] = found
        return moved

    def locate_all(self, tensors: Sequence[torch.Tensor | None]) -> list[int]:
        """One address a tensor; 0 for none."""
        try:
            return list(map(self._locate, tensors))  # type: ignore[arg-type] # the usual case, without None
        except Exception:  # a wrapper (fake, sparse, distributed), a lazy parameter, or None: not all have memory
            return [_locate_or_0(self._locate, tensor) for tensor in tensors]

    def _state_names_of(self, optimizer: torch.optim.Optimizer) -> list[str]:
        named = {
            id(ref()): name
            for root in (*self._roots, *self._loose)
            for ref, name in zip(root.parameters, root.parameter_names, strict=True)
        }
        return [
            f"{key} of {named.get(id(parameter), 'a parameter')}"
            for parameter, state in optimizer.state.items()
            for key, value in (state.items() if isinstance(state, dict) else (("state", state),))
            for _ in tensors_in(value)
        ]


def _locate_or_0(locate: Callable[[torch.Tensor], int], tensor: torch.Tensor | None) -> int:
    try:
        return 0 if tensor is None else locate(tensor)
    except Exception:  # whatever a tensor that has no memory of its own raises must not end the user's training
        return 0


def _parts(sparse: torch.Tensor) -> list[torch.Tensor]:
    """The dense tensors of a sparse gradient."""
    try:
        return [sparse._values(), sparse._indices()]
    except Exception:  # another layout
        return []


class _Root:
    """The tensors of one model, or the loose parameters of an optimizer, with their names; held weakly."""

    def __init__(self, name: str, model: torch.nn.Module | None, parameters: Sequence[torch.Tensor] = ()) -> None:
        self._name = name
        self._model = None if model is None else weakref.ref(model)
        self.parameters = [weakref.ref(parameter) for parameter in parameters]
        self.parameter_names: Sequence[str] = [f"{name}.{index}" for index in range(len(parameters))]
        self.buffers: list[weakref.ref[torch.Tensor]] = []
        self.buffer_names: Sequence[str] = []
        self.refresh()

    def is_alive(self) -> bool:
        """Whether the model is still there; loose parameters count as there."""
        return self._model is None or self._model() is not None

    def sample(self) -> list[torch.Tensor | None]:
        """The first and the last of its tensors."""
        refs = (*self.parameters[:1], *self.parameters[-1:], *self.buffers[:1], *self.buffers[-1:])
        return [ref() for ref in refs]

    def live_parameters(self) -> list[torch.Tensor | None]:
        """The parameters, None for one that is gone."""
        return [ref() for ref in self.parameters]

    def refresh(self) -> None:
        """Look at the model again: parameters may have come and gone."""
        model = None if self._model is None else self._model()
        if model is None:
            return
        named = list(model.named_parameters())
        self.parameters = [weakref.ref(parameter) for _, parameter in named]
        self.parameter_names = [f"{self._name}.{name}" for name, _ in named]
        held = list(model.named_buffers())
        self.buffers = [weakref.ref(buffer) for _, buffer in held]
        self.buffer_names = [f"{self._name}.{name}" for name, _ in held]


def _sample_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor | None]:
    """The tensors that an optimizer keeps for its first and its last parameter."""
    state, groups = optimizer.state, optimizer.param_groups
    ends = [parameters[i] for i in (0, -1) for group in (groups[i],) if (parameters := group["params"])]
    return [tensor for parameter in ends if parameter in state for tensor in tensors_in(state[parameter])]


def tensors_in(value: Any, depth: int = 8) -> Iterator[torch.Tensor]:
    """Every tensor in nested tuples, lists and dicts; not in other containers, which may do anything when asked."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, (tuple, list, dict)):
        for item in dict.values(value) if isinstance(value, dict) else value:
            yield from tensors_in(item, depth - 1)
