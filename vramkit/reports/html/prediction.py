"""What a page shows of an estimate beside what every result has. Knows figures, and not how they are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ...gpus import GPU


class BatchSizePoint(Protocol):
    """What a program needs with one batch size; bytes."""

    @property
    def batch_size(self) -> int: ...
    @property
    def peak_allocated(self) -> int: ...
    @property
    def peak_reserved(self) -> int: ...
    @property
    def used(self) -> int:
        """``peak_reserved`` and the CUDA context."""

    @property
    def fits(self) -> bool:
        """Whether it runs to its end on the card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What is known of a prediction beside its tape."""

    engine: str
    """What made it: "virtual" or "fake"."""
    gpu: GPU
    """The card."""
    batch_size: int
    """Rows of the batch; 0: it has none."""
    verdict: str
    """Whether it fits, in a sentence."""
    fits: bool
    curve: Sequence[BatchSizePoint] = ()
    """What rising batch sizes need."""
    why_no_curve: str = ""
    """Why there is none, in a sentence; empty: nobody asked for one."""
