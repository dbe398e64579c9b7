"""A training step that vramkit brings, as Python source: what of it can be written otherwise. Knows no change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The step of a model that is known by its name. A step that has one as ``written`` is: the batch to the device,
    forward and loss, backward, as often as it accumulates, ``optimizer.step()``, ``optimizer.zero_grad()``.
    """

    call: str
    """How the model is called with ``batch``, as Python."""
    value: str
    """The loss, as Python; it may call ``loss``."""
    loss: Callable[[Any, Any], torch.Tensor] | None
    """Takes what the model returns and the batch; None: the model computes its own."""
    autocast: torch.dtype | None
    accumulate: int
    shifted: bool = False
    """The model's own loss is the cross entropy of its ``logits`` and the ``labels`` of the batch, one place later."""


def written(step: object) -> Written | None:
    """How a step is written; None: nobody knows, as of a user's own."""
    found = getattr(step, "written", None)
    return found if isinstance(found, Written) else None
