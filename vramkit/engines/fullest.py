"""Several ranks of a job as one program, for which the one answers that takes most. Knows sessions; plays no rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..gpus import GPU
from ..programs.layer_count import LayerCounts, StepCount
from ..programs.program import Rewrite
from ..sizes import format_size
from . import EngineName, Run, Session

_SHOWN = 8


class Fullest:
    """A session of several, of which each runs: the answer is that of the one which ran out, or reserved most.

    Args:
        ranks: the sessions, by their ranks; at least one.
    """

    def __init__(self, ranks: Mapping[int, Session]) -> None:
        self._ranks = ranks

    @property
    def engine(self) -> EngineName:
        """See `Session`."""
        return next(iter(self._ranks.values())).engine

    def run(self, gpu: GPU, batch_size: int, *, unlimited: bool = False, detailed: bool = True) -> Run:
        """See `Session.run`."""
        runs = {
            rank: each.run(gpu, batch_size, unlimited=unlimited, detailed=detailed)
            for rank, each in self._ranks.items()
        }
        fullest = max(runs, key=lambda rank: _size(runs[rank]))
        return replace(runs[fullest], notes=(*runs[fullest].notes, _compared(runs, fullest)))

    def count_layers(self, gpu: GPU, batch_size: int) -> LayerCounts:
        """See `Session.count_layers`. Of the first rank."""
        return next(iter(self._ranks.values())).count_layers(gpu, batch_size)

    def count_step(self, gpu: GPU, batch_size: int) -> StepCount:
        """See `Session.count_step`. Of the rank that does most: the others wait for it."""
        return max((each.count_step(gpu, batch_size) for each in self._ranks.values()), key=lambda count: count.flops)

    def apart(self) -> Fullest:
        """See `Session.apart`."""
        return Fullest({rank: each.apart() for rank, each in self._ranks.items()})

    def rewritten(self, rewrite: Rewrite, alloc_conf: str | None = None) -> Fullest:
        """See `Session.rewritten`."""
        return Fullest({rank: each.rewritten(rewrite, alloc_conf) for rank, each in self._ranks.items()})


def _size(run: Run) -> tuple[bool, int, int]:
    return run.ran_out, run.peak_reserved, run.peak_allocated


def _compared(runs: Mapping[int, Run], fullest: int) -> str:
    """What each came to, the fullest first."""
    order = sorted(runs, key=lambda rank: _size(runs[rank]), reverse=True)
    said = [f"rank {rank:,}: {_told(runs[rank])}" for rank in order[:_SHOWN]]
    more = [f"{len(order) - _SHOWN:,} others: no more than that"] * (len(order) > _SHOWN)
    return (
        f"Of {len(order):,} ranks that were played this is the fullest, rank {fullest:,}. {'; '.join([*said, *more])}."
    )


def _told(run: Run) -> str:
    return "runs out" if run.ran_out else f"{format_size(run.peak_reserved)} reserved"
