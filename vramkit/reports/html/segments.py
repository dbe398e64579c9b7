"""When the allocator held which ranges of the device's memory. Knows a tape's segments; nothing of blocks in them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

import numpy as np

from ...tape.events import Action, Ints, Tape

_COMES = (Action.SEGMENT_ALLOC, Action.SEGMENT_MAP)


def segment_lives(tape: Tape) -> Ints:
    """Every segment, and every range of mapped pages, from when to when the allocator held it.

    Returns:
        Shape ``(lives, 7)``: the event with which it came (-1: it was there before), the event with which it went (-1:
        it stayed), address, bytes, stream, whether it is of an expandable segment, so that blocks go on from it into
        the next one, and whether it is of a private pool. A range that is unmapped in part becomes others at that
        event.
    """
    ranges = _Ranges()
    for row in tape.segments:
        expandable, private = int(row["expandable"]), int(row["pool"].any())
        ranges.add(-1, int(row["address"]), int(row["size"]), int(row["stream"]), expandable, private)
    for event in np.flatnonzero((tape.events["action"] >= Action.SEGMENT_ALLOC) & (tape.events["action"] < Action.OOM)):
        row = tape.events[event]
        address, size = int(row["address"]), int(row["size"])
        if row["action"] in _COMES:
            expandable, private = int(row["action"] == Action.SEGMENT_MAP), int(row["pool"].any())
            ranges.add(int(event), address, size, int(row["stream"]), expandable, private)
        else:
            ranges.remove(int(event), address, size)
    return np.array(ranges.lives, np.int64).reshape(-1, 7)


class _Ranges:
    """The ranges that are held, by address, and all that ever were."""

    def __init__(self) -> None:
        self.lives: list[list[int]] = []
        self._starts: list[int] = []  # in order
        self._row_at: dict[int, int] = {}

    def add(self, event: int, address: int, size: int, stream: int, expandable: int, private: int) -> None:
        if address not in self._row_at:  # of what a damaged trace maps twice, the first stays
            insort(self._starts, address)
            self._row_at[address] = len(self.lives)
            self.lives.append([event, -1, address, size, stream, expandable, private])

    def remove(self, event: int, address: int, size: int) -> None:
        """End what lies in a range; what sticks out goes on as a range of its own."""
        end = address + size
        first = max(0, bisect_right(self._starts, address) - 1)
        for start in self._starts[first : bisect_left(self._starts, end)]:
            row = self.lives[self._row_at[start]]
            stop = start + row[3]
            if stop <= address:
                continue
            row[1] = event
            del self._row_at[start]
            del self._starts[bisect_left(self._starts, start)]
            for left, right in ((start, address), (end, stop)):
                if left < right:
                    self.add(event, left, right - left, *row[4:])
