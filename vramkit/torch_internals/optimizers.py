"""torch's private names of optimizers, learning-rate schedulers and gradient scalers.

Knows where torch keeps things; sends, hooks and runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import CodeType, FrameType
from typing import Any

import torch

from .names import look_up, mentioned, place_of, word_of


def _find_wrapper() -> CodeType:
    for each in torch.optim.Optimizer.profile_hook_step.__code__.co_consts:
        if isinstance(each, CodeType) and each.co_name == "wrapper":
            return each
    raise AttributeError("no such function is made there")


_wrapper: CodeType = look_up("torch.optim.Optimizer.profile_hook_step.wrapper", "profile", probe=_find_wrapper)


def is_step(frame: FrameType) -> bool:
    """Whether a frame is that of an optimizer's step: of the function that torch wraps around each to call hooks."""
    return frame.f_code.co_name == _wrapper.co_name and frame.f_code.co_filename == _wrapper.co_filename


# -- hooks ------------------------------------------------------------------------------------------------------------


def _hooks_of(name: str, register: Callable[..., object]) -> Callable[[torch.optim.Optimizer], Mapping[int, Any]]:
    look_up(f"torch.optim.Optimizer.{name}", "programs", probe=lambda: mentioned(name, register))
    # An optimizer that wraps another may have none.
    return lambda optimizer: getattr(optimizer, name, None) or {}


HOOKS: Mapping[str, Callable[[torch.optim.Optimizer], Mapping[int, Any]]] = {
    "register_step_pre_hook": _hooks_of("_optimizer_step_pre_hooks", torch.optim.Optimizer.register_step_pre_hook),
    "register_step_post_hook": _hooks_of("_optimizer_step_post_hooks", torch.optim.Optimizer.register_step_post_hook),
}
"""By the method that takes a hook: what reads those that an optimizer has."""

_OF_EVERY_OPTIMIZER = [
    place_of(f"torch.optim.optimizer.{name}", "programs", fallback=None)
    for name in ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
]


def hook_registries() -> list[dict[int, Any]]:
    """Where ``register_optimizer_step_pre_hook`` and its like put what they are given, each under a number."""
    return [vars(place.owner)[place.name] for place in _OF_EVERY_OPTIMIZER if place.owner is not None]


def hooks_of_every_optimizer() -> list[Any]:
    """Those that ``register_optimizer_step_post_hook`` and its like have taken."""
    return [hook for registry in hook_registries() for hook in registry.values()]


_OF_A_SCHEDULER = word_of("torch.optim.lr_scheduler.LRScheduler.step._wrapped_by_lr_sched", "programs")


def counts_for_a_scheduler(step: object) -> bool:
    """Whether a scheduler has put this function in the place of an optimizer's step."""
    return hasattr(step, _OF_A_SCHEDULER)


# -- state ------------------------------------------------------------------------------------------------------------

OF_SCHEDULERS = frozenset({"_step_count", "_opt_called"})
"""What schedulers of one version or another add to an optimizer's attributes."""

ASKS_CAPTURABLE = "_warned_capturable_if_run_uncaptured"
"""An attribute without which an optimizer that was unpickled asks for ``capturable``, which Adafactor doesn't have."""

STATE_MAKER = "_init_group"
"""The method of torch's own optimizers in which they make their state."""


def set_scaler_device(scaler: torch.amp.GradScaler, device: str) -> None:
    """Let a scaler be of another kind of device than it was made for."""
    setattr(scaler, _DEVICE, device)


_DEVICE: str = look_up(
    "torch.amp.GradScaler._device", "programs", probe=lambda: mentioned("_device", torch.amp.GradScaler.__init__)
)
