"""Undo a recorded trace: what the allocator held before its first event, where only its end is known.

Knows what can be seen from the end and which blocks' sizes can't; follows nothing forwards.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from ..tape.action_codes import (
    ALLOC,
    FREE,
    FREE_COMPLETED,
    SEGMENT_ALLOC,
    SEGMENT_FREE,
    SEGMENT_MAP,
    SEGMENT_UNMAP,
)
from .conf import MIN_BLOCK, AllocatorConf
from .states import BlockState, SegmentState
from .trace_forward import Extent, ImpossibleEvent, Ranges, assemble, pools_of


@dataclass(frozen=True, slots=True, kw_only=True)
class AmbiguousBlock:
    """A block that was alive before a trace and dies in it, so that nobody recorded its size."""

    address: int
    requested: int
    """Bytes that the program had asked for."""
    size: int
    """Bytes assumed: the smallest possible."""
    largest: int
    """Bytes of the largest possible block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialState:
    """What the allocator held before a trace's first event."""

    segments: tuple[SegmentState, ...]
    """In order of address; an expandable segment is one entry for each unbroken mapped range."""
    ambiguous: tuple[AmbiguousBlock, ...]
    """Blocks in ``segments`` whose size is not certain."""


def initial_state(
    segments: Sequence[SegmentState],
    action: npt.ArrayLike,
    address: npt.ArrayLike,
    size: npt.ArrayLike,
    stream: npt.ArrayLike,
    conf: AllocatorConf | None = None,
    *,
    pool: npt.ArrayLike | None = None,
) -> InitialState:
    """What the allocator held before a trace's first event, from what it holds after the last one.

    torch keeps a trace in a ring: after an overflow its beginning is lost, but every event can be undone.

    ::

        start = initial_state(segments_from_torch(after), action, address, size, stream)
        blocks = follow(start.segments, action, address, size, stream)

    Args:
        segments: what the allocator holds after the last event, as in the snapshot that brought the trace.
        action, address, size, stream, conf: as in `follow`.
        pool: torch's id of each event's private pool, 0, 0 for none; shape ``(events, 2)``. None: nobody knows, and
            what went back to the driver during the trace is taken to be of none.

    Returns:
        The segments, and the blocks in them whose size is uncertain: those alive at the start that die in the trace.
        Such a block's own size is nowhere recorded. It has at least its rounded request, and may have up to 1 MiB
        more that was not worth a split. What follows from its neighbours is used: a block to its right that is
        nearer than a splittable rest, and a later allocation, which always starts where a free block starts.

    Raises:
        ImpossibleEvent: an event can't be undone. Its ``blocks`` are the rounded requests.
    """
    conf = conf or AllocatorConf()
    actions = np.asarray(action)
    sizes = np.asarray(size, np.int64)
    rounded = conf.round_sizes(sizes)
    expandable = conf.expandable_segments or bool(np.isin(actions, (SEGMENT_MAP, SEGMENT_UNMAP)).any())
    pools = pools_of(pool, len(actions))
    columns = list(
        zip(
            actions.tolist(),
            np.asarray(address, np.int64).tolist(),
            sizes.tolist(),
            rounded.tolist(),
            np.asarray(stream, np.int64).tolist(),
            strict=True,
        )
    )

    def fail(why: str) -> NoReturn:
        raise ImpossibleEvent(index, np.where(actions == ALLOC, rounded, 0), why)

    owned: dict[int, BlockState] = {}
    whole: dict[int, Extent] = {}
    ranges = Ranges()
    for segment in segments:
        if segment.expandable:
            ranges.add(segment.address, segment.size, segment.stream, segment.small, segment.pool)
        else:
            whole[segment.address] = (segment.size, segment.stream, segment.small, segment.pool)
        owned.update({block.address: block for block in segment.blocks if block.state != "inactive"})
    unsure: dict[int, int] = {}  # start of a block of unknown size -> index of the event that freed it

    # Only the owned blocks are kept: what is free at the start is what they leave of the segments.
    for index in range(len(columns) - 1, -1, -1):
        code, where, requested, need, line = columns[index]
        if code == ALLOC:
            if owned.pop(where, None) is None:
                fail(f"the block put at {where:#x} is not there afterwards")
            unsure.pop(where, None)
        elif code == FREE_COMPLETED:
            if where in owned:
                fail(f"the block at {where:#x} is still in use after it became free")
            owned[where] = BlockState(where, need, requested, "active_pending_free")
            unsure[where] = index
        elif code == FREE:
            if where not in owned:
                fail(f"the block given back at {where:#x} did not become free and is not in use either")
            block = owned[where]
            owned[where] = BlockState(where, block.size, block.requested, "active_allocated")
        elif code == SEGMENT_ALLOC:
            if whole.pop(where, (0,))[0] != requested:
                fail(f"the segment of {requested} bytes at {where:#x} is not there afterwards")
        elif code == SEGMENT_FREE:
            if where in whole:
                fail(f"the segment at {where:#x} is still there after it went back")
            whole[where] = (requested, line, conf.is_small_segment(requested), pools[index])
        elif code == SEGMENT_MAP:
            if not ranges.remove(where, requested):
                fail(f"the {requested} bytes mapped at {where:#x} are not there afterwards")
        elif code == SEGMENT_UNMAP:
            ranges.add(where, requested, line, conf.is_small_segment(requested), pools[index])

    homes = _Homes(whole, ranges)
    outside = [(died, where) for where, died in unsure.items() if homes.end_of(where) < where + owned[where].size]
    if outside:
        index, where = max(outside)
        fail(f"the block at {where:#x} was in no segment")
    births = [(index, each[1]) for index, each in enumerate(columns) if each[0] == ALLOC]
    ambiguous = _with_slack(owned, unsure, homes, births, conf, expandable=expandable)
    return InitialState(segments=assemble([*owned.values()], whole, ranges), ambiguous=ambiguous)


class _Homes:
    """Where segments and mapped ranges end."""

    def __init__(self, whole: dict[int, Extent], ranges: Ranges) -> None:
        self._sizes = {start: extent[0] for start, extent in [*whole.items(), *ranges.spans.items()]}
        self._starts = sorted(self._sizes)

    def end_of(self, address: int) -> int:
        """The end of the segment or range that begins at an address or next before it; 0: none does."""
        place = bisect_right(self._starts, address)
        return self._starts[place - 1] + self._sizes[self._starts[place - 1]] if place else 0


def _with_slack(
    owned: dict[int, BlockState],
    unsure: dict[int, int],
    homes: _Homes,
    births: list[tuple[int, int]],
    conf: AllocatorConf,
    *,
    expandable: bool,
) -> tuple[AmbiguousBlock, ...]:
    """Give every block of unknown size the bytes behind it that can't have been free; returns those not certain."""
    known = sorted(owned)
    born_at: dict[int, int] = {}
    for index, where in births:
        born_at.setdefault(where, index)
    births_by_place = sorted(born_at)
    ambiguous = []
    for where, died in sorted(unsure.items()):
        block = owned[where]
        end = homes.end_of(where)
        place = bisect_right(known, where)
        limit = min(end, known[place]) if place < len(known) else end
        smallest = conf.smallest_rest(block.size, expandable=expandable)
        gap = limit - (where + block.size)
        if gap < smallest:
            # A rest of this size is never split off, so it is the block's own.
            owned[where] = BlockState(where, block.size + gap, block.requested, block.state)
            continue
        # The gap is slack (less than `smallest`), then one free block. A block of a large pool has over 1 MiB.
        slack = min(smallest - 1, gap - smallest)
        slack -= slack % MIN_BLOCK
        if slack <= 0:
            continue
        # While the block lived, an allocation in the gap began where the gap's free block begins: at the block's end.
        first = bisect_left(births_by_place, where + block.size)
        last = bisect_right(births_by_place, where + block.size + slack)
        found = next((each for each in births_by_place[first:last] if born_at[each] < died), None)
        if found is not None:
            owned[where] = BlockState(where, found - where, block.requested, block.state)
        else:
            ambiguous.append(
                AmbiguousBlock(address=where, requested=block.requested, size=block.size, largest=block.size + slack)
            )
    return tuple(ambiguous)
