"""What a virtual GPU could not do while a recording ran, as notes: of the result, and of the exception that came of it.

Knows what the virtual GPU counts; knows no events. On a real GPU there is nothing to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch

from ..out_of_memory import is_out_of_memory
from ..tape.events import Module
from ..virtual_gpu import current
from ..virtual_gpu.limits import limit_behind
from ..virtual_gpu.values.hook import Read
from .marks import Marks
from .uncomputed import of_choices, of_reads, of_searches

_SEARCHED = (
    "torch.backends.cudnn.benchmark was on. Which of cuDNN's plans is the fastest, the card alone knows; here it is "
    "the one that cuDNN's heuristics put first. What the search itself takes is as on the card; the steps after it may "
    "want another workspace there."
)


@dataclass(frozen=True, slots=True)
class _Counts:
    reads: Counter[Read] = field(default_factory=Counter)
    spread: Counter[Read] = field(default_factory=Counter)
    plans_timed: int = 0
    limits_met: int = 0


class Limits:
    """Of the virtual GPU, from now on."""

    def __init__(self) -> None:
        self._before = self._now = _counts()
        self._functions: list[str] = []
        self._searches: list[str] = []

    def stop(self, optimizers: Collection[torch.optim.Optimizer]) -> None:
        """End the time that is spoken of, in which there were these optimizers."""
        self._now = _counts()
        handle = current()
        if handle is not None:
            self._functions = handle.limits_since(self._before.limits_met)
            self._searches = of_searches(optimizers, 0 if handle.values is None else handle.values.largest)

    def notes(self, marks: Marks, modules: Sequence[Module]) -> list[str]:
        """What the result has to say.

        Args:
            marks: of the recording.
            modules: that they speak of.
        """
        before, now = self._before, self._now
        searched = [_SEARCHED] if now.plans_timed > before.plans_timed else []
        return [
            *of_reads(now.reads - before.reads, marks, modules),
            *of_choices(now.spread - before.spread, marks, modules),
            *searched,
            *self._searches,
        ]

    def behind(self, error: BaseException | None) -> str | None:
        """The note of an exception that comes of a limit; None: of any other."""
        if error is None or is_out_of_memory(error):
            return None
        return limit_behind(error, self._functions)


def _counts() -> _Counts:
    handle = current()
    if handle is None:
        return _Counts()
    values = handle.values
    return _Counts(
        reads=Counter() if values is None else Counter(values.reads),
        spread=Counter() if values is None else Counter(values.spread),
        plans_timed=handle.plans_timed,
        limits_met=handle.limits_met,
    )
