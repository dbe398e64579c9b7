"""One batch size and what it took; and how a large batch is accumulated from small ones. Figures only, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
