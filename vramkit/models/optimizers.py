"""Optimizers by name. Knows torch's own, those of bitsandbytes, and that others are named by module and class."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..errors import UsageError, shown
from ..exports import optional

_LR = 1e-4
_MOMENTUM = 0.9
_WITH_SETTINGS = {"sgd-momentum": (torch.optim.SGD, {"momentum": _MOMENTUM})}
_FLAGS = ("fused", "foreach")
_IN_8_BITS = {"adam": "Adam8bit", "adamw": "AdamW8bit", "lion": "Lion8bit", "sgd": "SGD8bit"}
"""Classes of bitsandbytes, whose states have a byte for each number."""


def make(asked: str, name: str, model: torch.nn.Module) -> torch.optim.Optimizer:
    """An optimizer of what a model trains.

    Args:
        asked: what was asked for, as an error's text begins.
        name: of a class of ``torch.optim`` in any case ("adamw"), also with "-fused"; "adamw-8bit"; "sgd-momentum";
            or "module:Class".
        model: whose parameters that require a gradient are trained.

    Raises:
        UsageError: there is no such optimizer, or it can't be made here.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise UsageError(asked, "no parameter is trained", instead="Freeze fewer blocks")
    factory, settings = _found(asked, name)
    if factory is getattr(torch.optim, "Muon", None):
        _check_matrices(asked, name, parameters)
    try:
        return factory(parameters, lr=_LR, **settings)  # type: ignore[no-any-return] # checked where it is used
    except Exception as error:
        raise UsageError(
            asked,
            f"{name} can't be made: it raised {type(error).__name__}: {error}",
            instead="Name another one, or a torch.optim.Optimizer of your own, as MODULE:CLASS",
        ) from error


def _check_matrices(asked: str, name: str, parameters: Sequence[torch.nn.Parameter]) -> None:
    others = [parameter for parameter in parameters if parameter.dim() != 2]
    if others:
        raise UsageError(
            asked,
            f"with optimizer={shown(name)}",
            f"torch's Muon updates matrices alone, and {len(others)} of the {len(parameters)} parameters are none",
            "Write a function that returns the arguments of vramkit.estimate, with optimizer=[muon, adamw] and a step "
            "of both, and name that as MODULE:FUNCTION",
        )


def _found(asked: str, name: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    if name in _WITH_SETTINGS:
        return _WITH_SETTINGS[name]
    if ":" in name:
        return _of_module(asked, name), {}
    base, _, flag = name.partition("-")
    if flag == "8bit" and base.lower() in _IN_8_BITS:
        module = optional.load(asked, "bitsandbytes.optim", "integrations")
        # Without momentum SGD has no state, and bitsandbytes no such SGD.
        return getattr(module, _IN_8_BITS[base.lower()]), {"momentum": _MOMENTUM} if base.lower() == "sgd" else {}
    own = {each.__name__.lower(): each for each in vars(torch.optim).values() if _is_optimizer(each)}
    if base.lower() not in own or flag not in ("", *_FLAGS):
        known = ", ".join([*own, *_WITH_SETTINGS])
        raise UsageError(
            asked,
            f"with optimizer={shown(name)}",
            instead=f"It is {known}, one of torch's with -fused or -foreach, {' or '.join(_IN_8_BITS)} with -8bit, or "
            "MODULE:CLASS",
        )
    return own[base.lower()], {flag: True} if flag else {}


def _of_module(asked: str, name: str) -> Callable[..., Any]:
    module, _, path = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), path)
    except (ImportError, AttributeError, RuntimeError) as error:
        raise UsageError(
            asked,
            f"with optimizer={shown(name)}",
            f"It can't be imported here: {error}",
            f"Install what brings {module.partition('.')[0]}, or name one of torch's",
        ) from error
    return found  # type: ignore[no-any-return] # what it makes shows when it is called


def _is_optimizer(value: object) -> bool:
    base = torch.optim.Optimizer
    # LBFGS's step needs a closure, SparseAdam's sparse gradients: the steps here have neither.
    others = (base, torch.optim.LBFGS, torch.optim.SparseAdam)
    return inspect.isclass(value) and issubclass(value, base) and value not in others
