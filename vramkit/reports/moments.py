"""Which moments of a recording a picture shows: all, or so many that no peak is lost. Knows tapes, and no picture."""

from __future__ import annotations

import numpy as np

from ..tape.events import Action, Ints
from ..tape.memory import MemoryResult


def shown_moments(result: MemoryResult, limit: int, always: Ints) -> Ints:
    """Rows of ``result.timeline`` that are shown, in order.

    If there are more than the limit, those stay at which, among their neighbours, one category, the slack,
    ``allocated`` or ``reserved`` was highest, and those at which least was allocated. Each is a real moment with all
    that was alive then, so what is shown of it is exact.

    Args:
        result: of one device.
        limit: how many rows, at most.
        always: rows that stay in any case, up to half of the limit; the first go first.
    """
    timeline = result.timeline
    count = len(timeline)
    if count <= limit:
        return np.arange(count)
    always = np.concatenate([[0, count - 1, timeline.peak_moment, int(timeline.reserved.argmax())], always])
    always = always[: limit // 2]
    series = [column for column in timeline.by_category.T if column.any()]
    series += [timeline.slack, timeline.allocated, timeline.reserved, -timeline.allocated]
    parts = max(1, (limit - len(always)) // len(series))
    highest = [_highest_of_each(column, -(-count // parts)) for column in series]
    return np.unique(np.concatenate([always, *highest]))


def _highest_of_each(column: Ints, width: int) -> Ints:
    """The first row with the highest number in each run of so many rows."""
    whole = len(column) // width * width
    rows = column[:whole].reshape(-1, width).argmax(axis=1) + np.arange(0, whole, width)
    return np.append(rows, whole + column[whole:].argmax()) if whole < len(column) else rows


def failures(result: MemoryResult) -> Ints:
    """Rows of the timeline at which an allocation failed."""
    return np.flatnonzero(result.tape.events["action"] == Action.OOM) + 1


def flushes(result: MemoryResult) -> Ints:
    """Rows of the timeline at which the allocator began to give cached segments back to the device."""
    tape = result.tape
    return np.flatnonzero(tape.flushes & ~tape.events["pool"].any(axis=1)) + 1


def boundaries(result: MemoryResult) -> Ints:
    """Rows of the timeline with which a step or a phase begins."""
    events = result.tape.events
    changed = (events["step"][1:] != events["step"][:-1]) | (events["phase"][1:] != events["phase"][:-1])
    return np.flatnonzero(changed) + 2
