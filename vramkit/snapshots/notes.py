"""What is to be said of a snapshot beside its figures, in sentences. Knows what torch keeps, and what it loses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..allocator import NO_POOL, SegmentState
from ..errors import printable
from ..gpus import CUBLAS_WORKSPACE
from ..reports.layout import counted
from ..sizes import format_size
from ..tape.events import Action, Tape
from .labels import may_be_workspaces
from .stacks import line_of

_HOW = "torch.cuda.memory._record_memory_history()"


def notes_of(
    tape: Tape, entries: Sequence[Mapping[str, Any]], kept: int, last: Sequence[SegmentState], others: Sequence[str]
) -> Iterator[str]:
    """Every note of one device.

    Args:
        tape: what was made of the snapshot.
        entries: those of its trace that the tape has.
        kept: how many the trace has.
        last: what the allocator held after it.
        others: what else could not be known.
    """
    yield "A snapshot says where memory was, not what it was for: profile with vramkit.profile to see categories."
    if not np.isin(tape.events["action"], (Action.ALLOC, Action.FREE, Action.OOM)).any():
        stacks = ", only stacks of what is alive" if tape.stacks is not None and (tape.stacks.of >= 0).any() else ""
        yield (
            f"It has no history{stacks}, so this is one moment only: how high memory was before, nobody kept. Call "
            f"{_HOW} before what is to be seen."
        )
    elif tape.is_window:
        yield _beginning(tape, kept)
    if alike := int(may_be_workspaces(tape).sum()):
        yield (
            f"{counted(alike, 'allocation')} of {CUBLAS_WORKSPACE:,} B held at its end may be cuBLAS's, which keeps "
            "one for each thread that multiplies: no stack with torch's C++ says who made them (stacks='all')."
        )
    yield from others
    yield from _failure(tape, entries)
    yield from _pools(last)


def _beginning(tape: Tape, kept: int) -> str:
    """Why a history begins in the middle, as far as the blocks tell."""
    before = tape.allocations["born"] < 0
    held = f"{format_size(tape.initial_allocated)} in {counted(int(before.sum()), 'allocation')}"
    lost = f"torch's ring buffer (max_entries) kept the last {counted(kept, 'event')} and lost those before"
    if tape.stacks is not None and (tape.stacks.of[before] >= 0).any():
        why = f"some of these have stacks, so recording was on before; {lost}, or recording was begun anew"
    else:
        why = f"recording began then, or {lost}"
    return (
        f"Its history begins in the middle, with {held}: {why}. How high memory was before is not known. Call {_HOW} "
        "before the first allocation, with enough max_entries."
    )


def _failure(tape: Tape, entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The line that asked for what could not be had."""
    failures = np.flatnonzero(tape.events["action"] == Action.OOM)
    if not len(failures):
        return
    if line := line_of(entries[int(failures[-1])]):
        yield f"The allocation that failed was asked for by {printable(line)}."


def _pools(last: Sequence[SegmentState]) -> Iterator[str]:
    """Private pools, whose free memory nobody else can use."""
    pooled = [each for each in last if each.pool != NO_POOL]
    if not pooled:
        return
    pools, reserved = len({each.pool for each in pooled}), sum(each.size for each in pooled)
    used = sum(block.size for each in pooled for block in each.blocks if block.state != "inactive")
    rest = ": the rest is free to nothing outside of it" * (used < reserved)
    yield (
        f"At its end {format_size(reserved)} are in {counted(pools, 'private pool')} (torch.cuda.MemPool, or CUDA "
        f"graphs), {format_size(used)} of that allocated{rest}."
    )
