"""Where on a time axis the events of a tape are, and the runs in which nothing changes. Knows tapes; writes nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..tape.events import Ints, Tape

_NS = 1000  # nanoseconds of a microsecond
_LAST = 1 << 52  # microseconds; nanoseconds then fit 64 bits


def has_clock(tape: Tape) -> bool:
    """Whether the times of a tape are a clock's: some sources have none, and number their events."""
    time = tape.events["time"]
    return bool(len(time)) and time.min() != time.max() and not np.array_equal(time, np.arange(len(time)))


def moment_times(tape: Tape) -> Ints:
    """The time of every row of a timeline, in nanoseconds; shape ``(moments,)``. It never falls.

    Row 0, before the first event, is at 0, and the first event at one microsecond. Events of one microsecond are spread
    over it, so that what was allocated and freed within it can still be seen. Without a clock a row is at as many
    microseconds as its number.
    """
    count = len(tape.events)
    if not has_clock(tape):
        return np.arange(count + 1) * _NS
    time = np.maximum.accumulate(np.clip(tape.events["time"], 0, _LAST))  # threads may write down theirs a bit late
    first = np.flatnonzero(np.diff(time, prepend=-1))
    shared = np.diff(first, append=count)
    rank = np.arange(count) - np.repeat(first, shared)
    spread = (time - time[0] + 1) * _NS + rank * _NS // np.repeat(shared, shared)
    return np.concatenate([np.zeros(1, np.int64), spread])


def runs(*columns: npt.NDArray[np.integer]) -> Ints:
    """Where each unbroken run of equal rows begins.

    Args:
        columns: of one length.
    """
    count = len(columns[0])
    begins = np.zeros(count, np.bool_)
    begins[:1] = True
    for column in columns:
        begins[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(begins)
