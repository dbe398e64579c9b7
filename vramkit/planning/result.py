"""What ``vramkit.plan`` returns: variants of a program as a table. Knows what each was seen to take; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

from ..engines import EngineName
from ..exports import optional
from ..gpus import GPU
from ..results.files import replacing
from .changes import LeftOut
from .page import page
from .text import Shown, fragment, report
from .variant import Variant, cheapest, front

if TYPE_CHECKING:
    from pandas import DataFrame


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
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of torch, vramkit and Python, by name."""

    @property
    def plain(self) -> Variant:
        """The program as it is."""
        return self.variants[0]

    @property
    def cheapest(self) -> Variant | None:
        """Of the variants that fit the one with the least `Variant.cost`: the program as it is where that fits. None:
        none does.
        """
        return cheapest(self.variants)

    @property
    def closest(self) -> Variant:
        """The variant that reserves least."""
        return min(self.variants, key=lambda each: (each.peak_reserved, each.cost))

    @property
    def front(self) -> tuple[Variant, ...]:
        """The Pareto front: variants to which no other is as good or better in memory and in each part of the cost.

        Those whose operations were not counted are left out.
        """
        return front(self.variants)

    def report(self) -> str:
        """The table as text, what the cheapest variant is, and the code for it."""
        return report(self._shown())

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
            "versions": dict(self.versions),
        }

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write everything as one web page, which works offline: a picture of memory against cost, the code of each
        variant, and the table.

        Args:
            path: of the file; ``.html`` is usual. An existing file is replaced.

        Raises:
            OSError: the file can't be written.
        """
        content = page(self._shown()).encode()
        with replacing(path) as file:
            file.write(content)

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
        return fragment(self._shown())

    def _shown(self) -> Shown:
        return Shown(
            gpu=self.gpu,
            engine=self.engine,
            batch_size=self.batch_size,
            variants=self.variants,
            cheapest=self.cheapest,
            closest=self.closest,
            front=self.front,
            left_out=self.left_out,
            notes=self.notes,
            versions=self.versions,
        )

    def __str__(self) -> str:
        return self.report()

    def __repr__(self) -> str:
        best = self.cheapest
        return f"Plan({self.gpu.product}: {len(self.variants)} variants, cheapest {best.name if best else 'none'})"
