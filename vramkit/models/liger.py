"""Liger's Triton kernels in place of parts of a model of transformers, as ``Trainer(use_liger_kernel=True)`` has them.

They replace functions of transformers for a whole process, so it is done where the model is trained, when it is moved
there: the process that predicts keeps the functions that it has.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from ..errors import UsageError
from ..torch_internals.fakes import FakeTensor
from .recipe import Recipe


def apply(model: Any, kind: str, recipe: Recipe) -> None:
    """Have a model's parts replaced when it is moved to a GPU.

    Args:
        model: of transformers, or PEFT's around it.
        kind: ``model_type`` of its configuration.
        recipe: how it is used.

    Raises:
        UsageError: Liger isn't installed, or has no kernels for it.
    """
    try:
        known = import_module("liger_kernel.transformers.monkey_patch").MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:
        raise UsageError(
            recipe.asked,
            f"with liger, which can't be imported: {error}",
            instead="Install it beside a CUDA build of torch: pip install liger-kernel",
        ) from error
    if kind not in known:
        raise UsageError(
            recipe.asked,
            f"with liger, which has no kernels for models of type {kind!r}",
            f"It has some for {', '.join(sorted(known))}",
            "Leave it out",
        )
    model.to = partial(_move, model, vars(model).get("to"), recipe)


def _move(model: Any, loading: Callable[..., Any] | None, recipe: Recipe, device: object) -> Any:
    """Move a model as it would be moved, and replace its parts."""
    if any(isinstance(each, FakeTensor) for each in model.parameters()):
        raise UsageError(
            recipe.asked,
            "with liger and on fake tensors",
            "Liger's kernels are Triton's, which run on no fakes",
            "Predict it with the virtual engine, which Linux and a CUDA build of torch have",
        )
    from transformers.integrations.liger import apply_liger_kernel

    del model.to
    (loading or model.to)(device)
    apply_liger_kernel(model, None)
    return model
