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
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers

_OF_TENSORS = {
    "_backward_hooks": "register_hook",
    "_post_accumulate_grad_hooks": "register_post_accumulate_grad_hook",
}
_OF_OPTIMIZERS = {
    "_optimizer_step_pre_hooks": "register_step_pre_hook",
    "_optimizer_step_post_hooks": "register_step_post_hook",
}
_OF_EVERY_MODULE = (
    "_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks",
)  # fmt: skip
_OF_EVERY_OPTIMIZER = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")


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
    found = [hook for each in parameters.values() for hook in _on(each, _OF_TENSORS)]
    return (*found, *(hook for each in own for hook in _on(each, _OF_OPTIMIZERS)))


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
                if not hook.owner._backward_hooks:
                    # An empty dict that came with the pickle is not the one that a moved tensor looks into.
                    hook.owner._backward_hooks = None
            stack.callback(getattr(hook.owner, hook.register)(hook.function).remove)
        yield


def notes(own: tuple[torch.optim.Optimizer, ...]) -> Iterator[str]:
    """What is left out of a prediction, in sentences."""
    if any(_are_users(getattr(modules, name, {})) for name in _OF_EVERY_MODULE):
        yield "Hooks on all modules (register_module_forward_hook and its like) were left out: hook the model's own."
    if any(_are_users(getattr(optimizers, name, {})) for name in _OF_EVERY_OPTIMIZER):
        yield (
            "Hooks on all optimizers (register_optimizer_step_post_hook and its like) were left out: hook the one that "
            "is passed."
        )
    if any(_is_replaced(each) for each in own):
        yield "A function in place of an optimizer's step() was left out: call it in the training step."


def _on(owner: Any, places: Mapping[str, str]) -> Iterator[Hook]:
    for place, register in places.items():
        for function in (getattr(owner, place, None) or {}).values():
            if _is_users(function):
                yield Hook(owner, register, function)


def _are_users(hooks: Mapping[int, Callable[..., object]]) -> bool:
    return any(map(_is_users, hooks.values()))


def _is_users(function: Callable[..., object]) -> bool:
    """Whether it is not of a recording that is going on."""
    while isinstance(function, partial):
        function = function.func
    return (getattr(function, "__module__", None) or "").partition(".")[0] != "vramkit"


def _is_replaced(optimizer: torch.optim.Optimizer) -> bool:
    step = vars(optimizer).get("step")
    return step is not None and not hasattr(step, "_wrapped_by_lr_sched")
