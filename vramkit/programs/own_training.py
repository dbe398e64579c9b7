"""Models that bring their training with them, as Lightning's do: a training step and optimizers as methods.

Knows the names of two methods and what they may return; imports no framework.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch


def brings_training(model: torch.nn.Module) -> bool:
    """Whether a model has ``training_step`` and ``configure_optimizers``."""
    return all(callable(getattr(model, name, None)) for name in ("training_step", "configure_optimizers"))


def configured(model: Any) -> list[torch.optim.Optimizer]:
    """What ``configure_optimizers`` makes: an optimizer, several, with schedulers or in dicts; none, for None.

    Raises:
        TypeError: it makes something else, or the model steps its optimizers itself.
    """
    if not getattr(model, "automatic_optimization", True):
        raise TypeError("the model steps its optimizers itself (automatic_optimization is False): pass step=...")
    return [*_optimizers(model.configure_optimizers())]


def _optimizers(made: Any) -> Iterator[torch.optim.Optimizer]:
    if isinstance(made, Mapping):
        yield from _optimizers(made.get("optimizer"))
    elif isinstance(made, (list, tuple)):
        # A pair of lists is of optimizers and schedulers.
        several = made[0] if len(made) == 2 and isinstance(made[0], (list, tuple)) else made
        for each in several:
            yield from _optimizers(each)
    elif hasattr(made, "step") and hasattr(made, "param_groups"):
        yield made
    elif made is not None:
        raise TypeError(f"configure_optimizers returned {type(made).__name__}")


def training_loss(model: Any, batch: Any) -> Any:
    """The loss that ``training_step`` returns, of itself or in a dict."""
    takes = len(inspect.signature(model.training_step).parameters)
    output = model.training_step(batch, 0) if takes > 1 else model.training_step(batch)
    return output["loss"] if isinstance(output, Mapping) else output
