"""What ``vramkit.summary`` returns: a layer table as a value. Knows rows and an estimate; needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..errors import printable
from ..estimation.result import Estimate
from ..exports import optional
from ..reports.layout import note, wrapped
from ..sizes import format_size
from .cells import shown_count, shown_rows
from .rows import LayerRow
from .text import fragment, text

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Summary:
    """A model's layers and what each takes in a training step: what ``vramkit.summary`` returns.

    ::

        table = vramkit.summary(model, batch, optimizer=torch.optim.AdamW)
        print(table)
        heaviest = max(table.rows[1:], key=lambda row: row.activations)

    Each row has everything inside the layer too, so the rows of the models are the totals. Memory is that of
    ``estimate``, multiply-adds are those of torch's ``FlopCounterMode``.
    """

    rows: tuple[LayerRow, ...]
    """A row for each layer, outermost first; those of the models have depth 0."""
    estimate: Estimate
    """The prediction that the sizes are from; it tells more, such as ``estimate.to_html(path)``."""
    called: str
    """How the model is called, in short: ``"model(f32[64,784])"``."""
    notes: tuple[str, ...] = ()
    """What could not be known, in sentences."""

    @property
    def parameters(self) -> int | None:
        """Numbers in the models' parameters, shared ones once; None: not known."""
        return self._total("parameters")

    @property
    def trainable(self) -> int | None:
        """How many of them have ``requires_grad``."""
        return self._total("trainable")

    @property
    def multiply_adds(self) -> int | None:
        """Multiply-adds of a step's forwards; None: not known."""
        return self._total("multiply_adds")

    def _total(self, name: str) -> int | None:
        known = [value for row in self.rows if not row.depth and (value := getattr(row, name)) is not None]
        return sum(known) if known else None

    def report(self, *, depth: int | None = None) -> str:
        """The table as text. Numbered neighbours that are the same in everything but the peak are one row.

        Args:
            depth: leave out layers that are inside of more layers than this; None: show all.
        """
        lines = [line for sentence in self._sentences() for line in wrapped(sentence, "")]
        lines += [line for each in self.notes for line in note(each)]
        return text(self._title(), shown_rows(self.rows, depth), lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can carry it; ``docs/json.md`` says what it has."""
        return {
            "called": self.called,
            "engine": self.estimate.engine,
            "gpu": self.estimate.gpu.name,
            "batch_size": self.estimate.batch_size or None,
            "parameters": self.parameters,
            "trainable": self.trainable,
            "multiply_adds": self.multiply_adds,
            "peak_allocated": self.estimate.peak_allocated,
            "peak_reserved": self.estimate.peak_reserved,
            "fits": self.estimate.fits(),
            "layers": [{**asdict(row), "output_shape": list(row.output_shape)} for row in self.rows],
            "notes": list(self.notes),
        }

    def to_frame(self) -> DataFrame:
        """A table of pandas: a row for each layer, with the fields of `LayerRow` as columns.

        Raises:
            UsageError: pandas is not installed; ``vramkit[pandas]`` brings it.
        """
        pandas = optional.load("A layer table was to become a table of pandas", "pandas", "pandas")
        frame: DataFrame = pandas.DataFrame([asdict(row) for row in self.rows])
        counts = ["parameters", "trainable", "multiply_adds"]
        return frame.astype(dict.fromkeys(counts, "Int64"))

    def _title(self) -> str:
        names = ", ".join(printable(row.name) for row in self.rows if not row.depth)
        engine = f"predicted for {self.estimate.gpu.product} ({self.estimate.engine} engine)"
        return f"vramkit: layers of {names}, {engine}"

    def _sentences(self) -> Iterator[str]:
        estimate = self.estimate
        if self.parameters is not None:
            fixed = self.parameters - (self.trainable or 0)
            trained = f"{fixed:,} of them not trainable" if fixed else "all trainable"
            yield f"{self.parameters:,} parameters, {trained}."
        if self.multiply_adds is not None:
            yield f"{shown_count(self.multiply_adds)} multiply-adds in a step's forward ({self.multiply_adds:,})."
        sizes = f"{format_size(estimate.peak_allocated)} allocated and {format_size(estimate.peak_reserved)} reserved"
        fits = "" if estimate.fits() else " That does not fit the card."
        yield f"A step with {printable(self.called)} has {sizes} at most.{fits}"
        yield (
            "Each row has what is inside the layer, too. Activations: bytes that it made and that live beyond the "
            "forward, for the backward. State: the optimizer's. Peak: the most that was allocated on the whole device "
            "while it ran."
        )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return fragment(self._title(), shown_rows(self.rows), [*self._sentences(), *self.notes])

    def __str__(self) -> str:
        return self.report()

    def __repr__(self) -> str:
        count = "" if self.parameters is None else f", {self.parameters:,} parameters"
        names = ", ".join(printable(row.name) for row in self.rows if not row.depth)
        return f"Summary({names}: {len(self.rows):,} layers{count})"
