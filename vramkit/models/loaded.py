"""What a name comes to: a model, a batch and a step. Knows nothing of where they are from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from ..errors import UsageError
from ..programs.training import PlainStep


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model, a batch of its and a step, as ``vramkit.models.load`` returns them; it unpacks to these three.

    ::

        loaded = vramkit.models.load("torchvision:resnet18", batch_size=64)
        estimate = vramkit.estimate(**loaded.arguments(), gpu="t4")
    """

    model: torch.nn.Module
    """On ``meta``: it has shapes, and takes no memory."""
    batch: Any
    """On the CPU; dimension 0 of each tensor is the batch."""
    step: Callable[[Any], object]
    """One step of a training script, or of inference."""
    optimizer: Any = None
    """The optimizer that the step uses; None: it trains nothing."""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.batch, self.step))

    def arguments(self) -> dict[str, Any]:
        """As arguments of ``vramkit.estimate``, by name."""
        given = {"model": self.model, "batch": self.batch, "step": self.step, "optimizer": self.optimizer}
        return {name: value for name, value in given.items() if value is not None}


def as_loaded(asked: str, given: Mapping[str, Any]) -> Loaded:
    """What a function returned as a model, a batch and a step: its own, or the plain one of ``vramkit.estimate``.

    Args:
        asked: what was asked for, as an error's text begins.
        given: arguments of ``vramkit.estimate`` by name.

    Raises:
        UsageError: a model or a batch is missing.
    """
    if missing := [name for name in ("model", "batch") if name not in given]:
        raise UsageError(asked, f"what the function returned has no {' and no '.join(missing)}")
    model, optimizer = given["model"], given.get("optimizer")
    if given.get("step") is not None:
        return Loaded(model, given["batch"], given["step"], optimizer)
    if optimizer is not None and callable(optimizer) and not isinstance(optimizer, torch.optim.Optimizer):
        models = (
            model.values() if isinstance(model, Mapping) else model if isinstance(model, (list, tuple)) else [model]
        )
        optimizer = optimizer(chain.from_iterable(each.parameters() for each in models))
    optimizers = () if optimizer is None else optimizer if isinstance(optimizer, (list, tuple)) else (optimizer,)
    step = PlainStep(model, optimizers, given.get("loss"), given.get("autocast"), "cuda")
    return Loaded(model, given["batch"], step, optimizer)
