"""torch's private names of modules, parameters and optimizers, and of ``torch.compile`` where it wraps these.

Knows where torch keeps things; sends, hooks and runs nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import CodeType, FrameType
from typing import Any

import torch

from .names import look_up, reader_of


def _instance_has(name: str) -> Callable[[], object]:
    return lambda: getattr(torch.nn.Module(), name)


children_of: Callable[[torch.nn.Module], Mapping[str, torch.nn.Module | None]] = reader_of(
    "torch.nn.Module._modules", "profile", probe=_instance_has("_modules")
)
"""The modules in a module. ``named_children()`` is a method that programs override."""

parameters_of: Callable[[torch.nn.Module], Mapping[str, torch.nn.Parameter | None]] = reader_of(
    "torch.nn.Module._parameters", "profile", probe=_instance_has("_parameters")
)
"""A module's own parameters. ``named_parameters()`` is a method that programs override."""

gradient_hooks_of: Callable[[torch.Tensor], Mapping[int, Any] | None] = reader_of(
    "torch.Tensor._post_accumulate_grad_hooks", "profile", "programs"
)
"""Hooks that run when a parameter's gradient is there."""


def is_replica(module: torch.nn.Module) -> bool:
    """Whether ``DataParallel`` has made a module for one call."""
    return bool(getattr(module, "_is_replica", False))  # torch asks the same way: other modules have no such attribute


def _find_wrapper() -> CodeType:
    for each in torch.optim.Optimizer.profile_hook_step.__code__.co_consts:
        if isinstance(each, CodeType) and each.co_name == "wrapper":
            return each
    raise AttributeError("no such function is made there")


_step_wrapper: CodeType = look_up("torch.optim.Optimizer.profile_hook_step.wrapper", "profile", probe=_find_wrapper)


def is_optimizer_step(frame: FrameType) -> bool:
    """Whether a frame is that of an optimizer's step: of the function that torch wraps around each to call hooks."""
    code = frame.f_code
    return code.co_name == _step_wrapper.co_name and code.co_filename == _step_wrapper.co_filename


def restore_in_dynamo(call: Callable[..., Any]) -> None:
    """Dynamo keeps what ``Module.__call__`` was when it was first imported; that must not be ``call``."""
    utils = sys.modules.get("torch._dynamo.utils")
    if utils is not None and getattr(utils, "unpatched_nn_module_call", None) is call:
        utils.unpatched_nn_module_call = torch.nn.Module.__call__  # type: ignore[attr-defined] # not in its stub
