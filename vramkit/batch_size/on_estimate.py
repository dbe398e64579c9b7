"""Batch sizes that nobody can run here: an engine predicts what each takes, as a fresh process would. Knows sessions of
an estimate; knows no device.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

from ..engines import Session
from ..gpus import GPU
from ..results.profile import Profile
from ..scaling.requests import requests_of
from .search import TrialRun
from .trial import Trial


@dataclass
class EstimatedMachine:
    """Predicts a program on a card.

    Args:
        session: runs the program.
        gpu: the card.
    """

    runs_too_large: ClassVar[bool] = True
    session: Session
    gpu: GPU
    last: Profile | None = None
    """What the last prediction came to, in detail; on the same card with as much memory as was needed."""

    @property
    def capacity(self) -> int:
        """Bytes that a process can have: those of the card without the CUDA context; see `Machine`."""
        return self.gpu.memory - self.gpu.context

    def run(self, batch_size: int, *, is_probe: bool) -> TrialRun:
        """Predict one size; see `Machine`."""
        began = time.perf_counter()
        # With as much memory as it needs: what would have to be tried again on the card itself shows in the sum.
        run = self.session.run(self.gpu, batch_size, unlimited=True)
        fits = not run.ran_out and run.peak_reserved <= self.capacity
        self.last = run.profile
        trial = Trial(
            batch_size=batch_size,
            fits=fits,
            peak_allocated=run.peak_allocated,
            peak_reserved=run.peak_reserved,
            seconds=time.perf_counter() - began,
            kind="predicted",
            is_probe=is_probe,
            ran_out=run.ran_out,
        )
        if run.ran_out or run.profile is None:
            return TrialRun(trial=trial)
        return TrialRun(trial=trial, requests=requests_of(batch_size, run.profile.tape))
