"""Counts a model's parameters, its calls and the multiply-adds of its forwards while a program runs.

Knows ``nn.Module`` and torch's ``FlopCounterMode``. Whoever runs the program gives its own copy of the models: they are
hooked. A run that is counted is no run to measure, as operators are taken apart for the counter.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import Self

from ..torch_internals.autograd import graph_task
from ..torch_internals.dispatch import TorchDispatchMode
from ..torch_internals.modules import RECURRENT, children_of, parameters_of, unwrapped
from .layer_count import LayerCount, LayerCounts, StepCount

_DIMENSIONS: tuple[tuple[tuple[type[nn.Module], ...], int], ...] = (
    ((nn.Conv1d, nn.ConvTranspose1d, nn.RNNBase), 3),
    ((nn.Conv2d, nn.ConvTranspose2d), 4),
    ((nn.Conv3d, nn.ConvTranspose3d), 5),
)
"""Layers that take one sample too, and how many dimensions a batch has there."""


class LayerCounter:
    """Counts while it is entered.

    Args:
        models: are hooked, until it is left.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self._modules = {
            (number, path): module
            for number, model in enumerate(models.values())
            for path, module in _walk(unwrapped(model), "", set())
        }
        self._flops = dict.fromkeys(self._modules, 0)
        self._calls = dict.fromkeys(self._modules, 0)
        self._took_one_sample = False
        self._here = threading.local()
        self._stack = ExitStack()
        self._counter = _flop_counter()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for key, module in self._modules.items():
                stack.enter_context(module.register_forward_pre_hook(self._begins))
                stack.enter_context(module.register_forward_hook(self._ender(key), always_call=True))
            stack.enter_context(_operators())
            stack.enter_context(self._counter)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def counts(self) -> LayerCounts:
        """What was counted so far; of parameters, what is there now: lazy modules make theirs in their forward."""
        counted: dict[int, set[int]] = {}
        found = {}
        for key, module in self._modules.items():
            seen = counted.setdefault(key[0], set())
            own = {
                id(each): each for each in parameters_of(module).values() if each is not None and id(each) not in seen
            }
            seen.update(own)
            found[key] = LayerCount(
                parameters=sum(map(_numel, own.values())),
                trainable=sum(_numel(each) for each in own.values() if each.requires_grad),
                calls=self._calls[key],
                flops=self._flops[key],
            )
        return LayerCounts(of=found, took_one_sample=self._took_one_sample)

    def _begins(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if graph_task() >= 0:  # in a backward: what a checkpoint runs again
            return
        self._running.append([self._counter.get_total_flops(), 0])
        if args and isinstance(args[0], torch.Tensor):
            dimensions = next((number for kinds, number in _DIMENSIONS if isinstance(module, kinds)), 0)
            self._took_one_sample |= args[0].dim() == dimensions - 1

    def _ender(self, key: tuple[int, str]) -> Any:
        def ended(module: nn.Module, args: Any, output: Any) -> None:
            if graph_task() >= 0 or not self._running:
                return
            before, of_others = self._running.pop()
            inside = self._counter.get_total_flops() - before
            self._flops[key] += inside - of_others
            self._calls[key] += 1
            if self._running:
                self._running[-1][1] += inside

        return ended

    @property
    def _running(self) -> list[list[int]]:
        """Of each module that runs in this thread: the count when it began, and what modules inside it have had."""
        stack: list[list[int]] = vars(self._here).setdefault("stack", [])
        return stack


class StepCounter:
    """Counts one whole step: that after the first one, as the optimizer's state is there by then.

    Args:
        sees_copies: tensors tell whether they are on the device.
    """

    STEPS = 2
    """What a program has to be run for."""

    def __init__(self, *, sees_copies: bool) -> None:
        self._copies = _Copies() if sees_copies else None  # type: ignore[no-untyped-call] # torch's
        self._counter = _flop_counter()
        self._stack = ExitStack()
        self._steps = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def after_step(self) -> None:
        """A step has ended."""
        self._steps += 1
        if self._steps == self.STEPS:
            self._stack.close()
            return
        self._stack.enter_context(_operators())
        if self._copies is not None:
            self._stack.enter_context(self._copies)
        self._stack.enter_context(self._counter)

    def count(self) -> StepCount:
        """What was counted."""
        return StepCount(
            flops=self._counter.get_total_flops(),
            transferred=None if self._copies is None else self._copies.transferred,
        )


class _Copies(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's
    """Adds up what is copied between the host and a device."""

    transferred = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.name() in _SOURCES:
            source = args[_SOURCES[func.name()]]
            if (source.device.type == "cpu") != (result.device.type == "cpu"):
                self.transferred += source.numel() * source.element_size()
        return result


_SOURCES = {"aten::copy_": 1, "aten::_to_copy": 0}
"""Operators that copy, and which of their arguments is copied."""


def _flop_counter() -> FlopCounterMode:
    formulas = {} if RECURRENT is None else {RECURRENT: _recurrent}
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment] # see there
    return counter


@contextmanager
def _operators() -> Iterator[None]:
    """Everything runs as operators, while this holds."""
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # compiled kernels are no operators
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        fast_path = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)  # one operator for a whole layer, without a formula
        yield


class _NoModules:
    """In place of what the counter finds modules with: hooks of every module in the process, and hooks of tensors."""

    parents = ("Global",)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        pass


def _walk(module: nn.Module, path: str, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    """A module and those inside it, each once, by paths without what wraps modules."""
    if id(module) in seen:
        return
    seen.add(id(module))
    yield path, module
    for name, child in children_of(module).items():
        if child is not None:
            yield from _walk(unwrapped(child), f"{path}.{name}" if path else name, seen)


def _numel(parameter: nn.Parameter) -> int:
    return 0 if isinstance(parameter, nn.parameter.UninitializedParameter) else parameter.numel()


def _recurrent(given: Sequence[int], weights: Sequence[Sequence[int]], *args: object, **others: object) -> int:
    """The formula that torch has not: each matrix of weights is multiplied with each step of each sequence, once."""
    return 2 * math.prod(given[:-1]) * sum(math.prod(shape) for shape in weights if len(shape) == 2)
