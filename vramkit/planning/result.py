"""What ``vramkit.plan`` returns: variants of a program as a table. Knows what each was seen to take; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..engines import EngineName
from ..exports import optional
from ..gpus import GPU
from .changes import LeftOut, Severity

if TYPE_CHECKING:
    from pandas import DataFrame

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
    """The largest batch with which it fits; None: it was not searched. A batch in parts can be of any size."""

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


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Plan:
    """What to change so that a training program fits a card: what ``vramkit.plan`` returns.

    ::

        plan = vramkit.plan(model, batch, optimizer=torch.optim.AdamW, loss=loss, gpu="rtx4090", batch_size=32)
        print(plan)
        print(plan.cheapest.code)

    Every figure is of a program that was run with the changes. Not every combination was.
    """

    gpu: GPU
    """The card."""
    engine: EngineName
    """What ran the variants, as for ``vramkit.estimate``."""
    batch_size: int
    """Rows of the batch; 0: it has no dimension 0."""
    variants: tuple[Variant, ...]
    """Everything that was run: first the program as it is, then those that fit, from the least costly on, and then the
    others, from the smallest on."""
    left_out: tuple[LeftOut, ...]
    """Changes that don't apply, can't be made from outside, or did not run, with the reason for each."""
    notes: tuple[str, ...] = ()
    """What had to be assumed, in sentences."""

    @property
    def plain(self) -> Variant:
        """The program as it is."""
        return self.variants[0]

    @property
    def cheapest(self) -> Variant | None:
        """Of the variants that fit the one with the least `Variant.cost`: the program as it is where that fits. None:
        none does.
        """
        fitting = (each for each in self.variants if each.fits)
        return min(fitting, key=lambda each: (each.cost, each.peak_reserved), default=None)

    @property
    def closest(self) -> Variant:
        """The variant that reserves least."""
        return min(self.variants, key=lambda each: (each.peak_reserved, each.cost))

    @property
    def front(self) -> tuple[Variant, ...]:
        """The Pareto front: variants to which no other is as good or better in memory and in each part of the cost."""
        counted = [each for each in self.variants if each.operations is not None]
        return tuple(each for each in counted if not any(_is_better(other, each) for other in counted))

    def report(self) -> str:
        """The table as text, what the cheapest variant is, and the code for it."""
        from .text import report  # which needs this file

        return report(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can carry it; ``docs/json.md`` says what it has."""
        front, cheapest = self.front, self.cheapest
        return {
            "engine": self.engine,
            "gpu": self.gpu.name,
            "batch_size": self.batch_size or None,
            "fits": cheapest is not None,
            "cheapest": None if cheapest is None else self.variants.index(cheapest),
            "variants": [{**asdict(each), "name": each.name, "on_front": each in front} for each in self.variants],
            "left_out": [asdict(each) for each in self.left_out],
            "notes": list(self.notes),
        }

    def to_frame(self) -> DataFrame:
        """A table of pandas: a row for each variant, with the fields of `Variant` as columns.

        Raises:
            UsageError: pandas is not installed; ``vramkit[pandas]`` brings it.
        """
        pandas = optional.load("A plan was to become a table of pandas", "pandas", "pandas")
        frame: DataFrame = pandas.DataFrame([{"name": each.name, **asdict(each)} for each in self.variants])
        counts = ["flops", "transferred", "largest_batch_size"]
        return frame.astype(dict.fromkeys(counts, "Int64"))

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from .text import fragment

        return fragment(self)

    def __str__(self) -> str:
        return self.report()

    def __repr__(self) -> str:
        best = self.cheapest
        return f"Plan({self.gpu.product}: {len(self.variants)} variants, cheapest {best.name if best else 'none'})"


def _is_better(one: Variant, other: Variant) -> bool:
    """Whether one is as good in everything, and better in something."""
    first, second = ((*each.cost, each.peak_reserved) for each in (one, other))
    return first != second and all(a <= b for a, b in zip(first, second, strict=True))
