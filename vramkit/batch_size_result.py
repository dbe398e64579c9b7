"""``BatchSizeResult``: what a search for the batch size comes to, every trial with it. Knows figures and how a large
batch is accumulated from small ones; knows neither torch nor how the search went about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .sizes import format_size

TrialKind = Literal["measured", "predicted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One batch size and what it took."""

    batch_size: int
    """Rows of the batch."""
    fits: bool
    """The steps ran to their end, without an allocation that had to be tried again, within the whole capacity."""
    peak_allocated: int
    """Highest ``memory_allocated()``, bytes; where memory ran out, until then. 0: not known."""
    peak_reserved: int
    """Highest ``memory_reserved()`` as a fresh process would have it, bytes; where memory ran out, until then."""
    seconds: float = 0.0
    """How long it took, cleaning up included."""
    kind: TrialKind = "measured"
    """"measured": the steps ran on the device; "predicted": they did not."""
    is_probe: bool = False
    """A small size, run to learn how memory grows."""
    ran_out: bool = False
    """An allocation failed, and with it the step."""
    retries: int = 0
    """Allocations that succeeded only after the allocator had given all cached memory back: thrashing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accumulation:
    """How a batch that is too large at once is made of smaller ones, their gradients being summed."""

    effective_batch_size: int
    """Rows that count for one optimizer step."""
    batch_size: int
    """Rows of each part, the last perhaps without."""
    steps: int
    """Parts: forward and backward passes for each optimizer step."""
    remainder: int
    """Rows of a last part that is smaller than the others; 0: all are equal."""
    even_batch_size: int
    """The largest part, at most ``batch_size``, of which a whole number makes the effective batch."""

    @property
    def even_steps(self) -> int:
        """How many parts of ``even_batch_size`` there are."""
        return self.effective_batch_size // self.even_batch_size


def accumulate(effective_batch_size: int, batch_size: int) -> Accumulation:
    """Divide a batch into parts that fit.

    ::

        accumulate(256, 64).steps       # 4, nothing remains
        accumulate(256, 100).steps      # 3: 100 + 100 + 56; or 4 x 64, which is even

    Args:
        effective_batch_size: rows that shall count for one optimizer step, at least 1.
        batch_size: rows that fit at once, at least 1.
    """
    full, remainder = divmod(effective_batch_size, batch_size)
    largest = min(batch_size, effective_batch_size)
    even = next(size for size in range(largest, 0, -1) if effective_batch_size % size == 0)
    return Accumulation(
        effective_batch_size=effective_batch_size,
        batch_size=largest,
        steps=full + bool(remainder),
        remainder=remainder if full else 0,
        even_batch_size=even,
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BatchSizeResult:
    """The largest batch that fits: what ``vramkit.auto_batch_size`` returns.

    ::

        found = vramkit.auto_batch_size(model, batch, optimizer=optimizer, step=train_step)
        loader = DataLoader(dataset, batch_size=int(found))
        print(found)

    Known limitations: it holds for the memory that was free when it was found; another process that takes some later
    makes it too large. What runs beside the step (an evaluation, a second model) is not in it.
    """

    batch_size: int
    """The largest that keeps the peak of reserved memory within ``memory_fraction`` of the capacity."""
    max_batch_size: int
    """The largest that fits at all."""
    peak_reserved: int
    """Highest ``memory_reserved()`` at ``batch_size``, as a fresh process would have it, bytes."""
    capacity: int
    """Bytes that this process can have: free on the device, and what its allocator holds already."""
    memory_fraction: float
    """How much of the capacity ``batch_size`` may use, above 0 and at most 1."""
    trials: tuple[Trial, ...]
    """Every size that was looked at, in that order; that one ran for longer, to look for a leak, is not told."""
    effective_batch_size: int | None = None
    """Rows that shall count for one optimizer step; None: nobody asked."""
    device_name: str = ""
    """What the device calls itself; empty: not known."""
    curve: tuple[tuple[int, int], ...] = ()
    """Peak reserved memory, bytes, predicted for further batch sizes: ``(batch_size, peak_reserved)``."""
    notes: tuple[str, ...] = ()
    """What could not be known, or should be, in sentences."""

    @property
    def limit(self) -> int:
        """Bytes within which ``batch_size`` keeps."""
        return int(self.capacity * self.memory_fraction)

    @property
    def accumulation(self) -> Accumulation | None:
        """How the effective batch is made of batches that fit; None: no effective batch size was given."""
        if self.effective_batch_size is None:
            return None
        return accumulate(self.effective_batch_size, self.batch_size)

    @property
    def accumulation_steps(self) -> int | None:
        """Forward and backward passes for each optimizer step, so that their rows are ``effective_batch_size``.

        ``accumulation_steps * batch_size`` is that, where it divides; else the last of them is smaller, and
        ``accumulation`` says by how much. None: no effective batch size was given.
        """
        made_of = self.accumulation
        return None if made_of is None else made_of.steps

    @property
    def verified(self) -> bool:
        """Whether ``batch_size`` and ``max_batch_size`` were run on the device, and not only predicted."""
        ran = {trial.batch_size for trial in self.trials if trial.kind == "measured" and trial.fits}
        return {self.batch_size, self.max_batch_size} <= ran

    def __int__(self) -> int:
        return self.batch_size

    def __index__(self) -> int:
        return self.batch_size

    def report(self) -> str:
        """One screen of text: the answer, what it means, the curve of memory against batch size, and the trials."""
        from .reports.batch_size import report

        return report(self)

    def __str__(self) -> str:
        return self.report()

    def __repr__(self) -> str:
        share = f"{self.memory_fraction:.4g} of {format_size(self.capacity)}"
        return (
            f"{type(self).__name__}({self.batch_size} within {share}, at most {self.max_batch_size}; "
            f"reserved {format_size(self.peak_reserved)}, {len(self.trials)} trials)"
        )
