"""Hooks of the user's on parameters and optimizers: what pickles of these leave out, and a training step calls.

Hooks on a module travel with it. Knows where torch keeps hooks; sends and runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..torch_internals import modules, optimizers


def left_out(hooks: Iterable[Hook]) -> str:
    """What to say of hooks that can't be sent."""
    names = sorted({getattr(hook.function, "__qualname__", type(hook.function).__name__) for hook in hooks})
    return (
        f"Hooks on parameters or optimizers were left out ({', '.join(names)}): they can't be sent to where the step "
        "runs. Keep files, locks and loggers out of them."
    )


@dataclass(frozen=True, eq=False)
class Hook:
    """A function that a parameter or an optimizer calls."""

    owner: Any
    register: str
    """Name of the owner's method that takes the function."""
    function: Callable[..., object]


def hooks_of(models: Mapping[str, torch.nn.Module], own: tuple[torch.optim.Optimizer, ...]) -> tuple[Hook, ...]:
    """Every hook on the parameters of some models, on some optimizers, and on what these train."""
    parameters = {id(each): each for model in models.values() for each in model.parameters()}
    parameters |= {id(each): each for optimizer in own for group in optimizer.param_groups for each in group["params"]}
    found = [hook for each in parameters.values() for hook in _on(each, modules.TENSOR_HOOKS)]
    return (*found, *(hook for each in own for hook in _on(each, optimizers.HOOKS)))


@contextmanager
def put_back(hooks: Iterable[Hook]) -> Iterator[None]:
    """Register hooks again where their owners have arrived, while this holds.

    They are taken off at the end: the collector doesn't see what a tensor's hooks hold.
    """
    with ExitStack() as stack:
        for hook in hooks:
            if isinstance(hook.owner, torch.Tensor):
                if not hook.owner.requires_grad:
                    continue  # frozen since, and takes none
                modules.forget_no_hooks(hook.owner)
            stack.callback(getattr(hook.owner, hook.register)(hook.function).remove)
        yield


def notes(own: tuple[torch.optim.Optimizer, ...]) -> Iterator[str]:
    """What is left out of a prediction, in sentences."""
    if any(map(_is_users, modules.hooks_of_every_module())):
        yield "Hooks on all modules (register_module_forward_hook and its like) were left out: hook the model's own."
    if any(map(_is_users, optimizers.hooks_of_every_optimizer())):
        yield (
            "Hooks on all optimizers (register_optimizer_step_post_hook and its like) were left out: hook the one that "
            "is passed."
        )
    if any(_is_replaced(each) for each in own):
        yield "A function in place of an optimizer's step() was left out: call it in the training step."


def _on(owner: Any, places: Mapping[str, Callable[[Any], Mapping[int, Any] | None]]) -> Iterator[Hook]:
    for register, hooks_in in places.items():
        for function in (hooks_in(owner) or {}).values():
            if _is_users(function):
                yield Hook(owner, register, function)


def _is_users(function: Callable[..., object]) -> bool:
    """Whether it is not of a recording that is going on."""
    while isinstance(function, partial):
        function = function.func
    return (getattr(function, "__module__", None) or "").partition(".")[0] != "vramkit"


def _is_replaced(optimizer: torch.optim.Optimizer) -> bool:
    step = vars(optimizer).get("step")
    return step is not None and not optimizers.counts_for_a_scheduler(step)
