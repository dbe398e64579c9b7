"""What one training step shows of a model's layers, as a value that processes send each other. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCount:
    """What was counted of one module, without the modules inside it."""

    parameters: int
    """Numbers in its parameters; one that several modules have counts where it is met first."""
    trainable: int
    """How many of them have ``requires_grad``."""
    calls: int
    """How often its forward ran, recomputations not included."""
    flops: int
    """Of its forwards, as torch's ``FlopCounterMode`` counts them: two for a multiply-add."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCounts:
    """What was counted of all models."""

    of: Mapping[tuple[int, str], LayerCount]
    """By the number of the model and the path below it, empty for the model itself; outermost first."""
    took_one_sample: bool
    """Whether a layer was called with a tensor that has no batch dimension, and allows that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCount:
    """What a whole training step does: forward, backward, what is computed again, and optimizer."""

    flops: int
    """As torch's ``FlopCounterMode`` counts them: two for a multiply-add."""
    transferred: int | None
    """Bytes that are copied between the host and the device; None: not known."""
