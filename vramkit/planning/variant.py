"""One row of a plan: a program with some changes, and what it was seen to take. Knows figures; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .changes import Severity

Effect = Literal["same", "precision", "transfers", "weights", "training"]
EFFECTS: Mapping[Severity, Effect] = {
    Severity.SAME: "same",
    Severity.PRECISION: "precision",
    Severity.TRANSFERS: "transfers",
    Severity.WEIGHTS: "weights",
    Severity.TRAINING: "training",
}
_ORDER = [*EFFECTS.values()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A training program with some changes, as it was run."""

    changes: tuple[str, ...]
    """What is changed, in short; empty: the program as it is."""
    peak_allocated: int
    """Highest ``memory_allocated()``, bytes."""
    peak_reserved: int
    """Highest ``memory_reserved()``, bytes."""
    used: int
    """``peak_reserved`` and the CUDA context, bytes."""
    fits: bool
    """It ran to its end on the card. Where False, the figures are of the same card with enough memory."""
    effect: Effect
    """What the changes do to the training, the one that does most. "same": the same numbers, up to the order in which
    they are added; "precision": products in fewer bits; "transfers": the same numbers, and bytes that cross PCIe in
    every step; "weights": weights and optimizer state in fewer bits; "training": another training, whose settings have
    to be found."""
    passes: int
    """How often a step goes through the model."""
    flops: int | None
    """Operations of a step, by torch's ``FlopCounterMode``: of matrix products, convolutions and attention, in forward,
    backward, and what is computed again. None: they were not counted."""
    operations: float | None
    """``flops``, relative to the program as it is."""
    transferred: int | None
    """Bytes that a step copies between host and device, the batch included; None: not counted, or not known."""
    numbers: tuple[str, ...]
    """What changes numerically, for each of the changes."""
    code: str
    """What to write: the code that was run."""
    largest_batch_size: int | None = None
    """The largest batch with which it fits the card; 0: not one row does. None: it was not searched, or some size did
    not run. A batch in parts can be of any size."""

    @property
    def name(self) -> str:
        """The changes, in one line."""
        return " + ".join(self.changes) or "as it is"

    @property
    def cost(self) -> tuple[int, float, int, int, int]:
        """What variants are ordered by: effect, operations, bytes over PCIe, passes, and how many changes there are."""
        operations = float("inf") if self.operations is None else round(self.operations, 3)
        return _ORDER.index(self.effect), operations, self.transferred or 0, self.passes, len(self.changes)

    def __repr__(self) -> str:
        fits = "fits" if self.fits else "does not fit"
        return f"Variant({self.name}: {fits})"


def is_better(one: Variant, other: Variant) -> bool:
    """Whether one is as good in everything, and better in something."""
    first, second = ((*each.cost, each.peak_reserved) for each in (one, other))
    return first != second and all(a <= b for a, b in zip(first, second, strict=True))


def cheapest(variants: Sequence[Variant]) -> Variant | None:
    """Of those that fit the one with the least `Variant.cost`; None: none does."""
    return min((each for each in variants if each.fits), key=lambda each: (each.cost, each.peak_reserved), default=None)


def front(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """Those of which operations were counted, and to which no other is as good or better in memory and in each cost."""
    counted = [each for each in variants if each.operations is not None]
    return tuple(each for each in counted if not any(is_better(other, each) for other in counted))
