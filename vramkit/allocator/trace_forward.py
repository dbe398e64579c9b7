"""Find the block behind every allocation of a recorded trace.

A trace of torch says which bytes were asked for and where they were put, not how large the block was. Knows the
segments' maps and the rule of splitting; chooses no address itself: the recorded one decides.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from ..errors import SnapshotError
from ..tape.action_codes import (
    ALLOC,
    FREE,
    FREE_COMPLETED,
    SEGMENT_ALLOC,
    SEGMENT_FREE,
    SEGMENT_MAP,
    SEGMENT_UNMAP,
)
from ..tape.events import Ints
from .conf import AllocatorConf
from .states import NO_POOL, BlockState, BlockUse, PoolId, SegmentState, fill


class ImpossibleEvent(SnapshotError):  # noqa: N818 - named by what was found
    """An event of a trace can't have happened in the state before it: the trace, its start or its settings are wrong.

    Args:
        event: index of the event in the trace.
        blocks: bytes of every allocation's block as far as it can be known: exact before ``event``, from there on
            the rounded request, which is too small by up to 1 MiB.
        found: what the event says, and why it can't be.
    """

    def __init__(self, event: int, blocks: Ints, found: str) -> None:
        super().__init__(
            "A recorded trace was followed",
            f"event {event}: {found}",
            "The trace has a gap, or its start or its allocator settings are not those of the recording",
            "Pass the segments from before the first event, and the PYTORCH_CUDA_ALLOC_CONF of the recording",
        )
        self.event = event
        self.blocks = blocks
        self.why = found


def follow(
    segments: Sequence[SegmentState],
    action: npt.ArrayLike,
    address: npt.ArrayLike,
    size: npt.ArrayLike,
    stream: npt.ArrayLike,
    conf: AllocatorConf | None = None,
) -> Ints:
    """Bytes of the block that every allocation of a recorded trace got.

    ::

        blocks = follow(segments_from_torch(before), action, address, size, stream, AllocatorConf.parse(conf))

    Args:
        segments: what the allocator held before the first event; see `initial_state` where nobody knows.
        action: code of `vramkit.tape.events.Action` of each event, in the allocator's order; shape ``(events,)``.
        address: of the block, segment or range of pages; shape ``(events,)``.
        size: bytes as torch records them: requested by ``ALLOC`` and the frees, of the segment otherwise.
        stream: of each event. Blocks of two streams never share a segment, so the address alone decides.
        conf: settings of the recording; None: the defaults. A trace that maps pages had expandable segments on,
            whatever ``conf`` says.

    Returns:
        Bytes of each ``ALLOC`` event's block, 0 for other events; shape ``(events,)``.

    Raises:
        ImpossibleEvent: an event does not fit the state before it. It carries the sizes as far as they are known.

    The split rule is that of torch's ``DeviceCachingAllocator::should_split`` (c10/cuda/CUDACachingAllocator.cpp).

    Known limitations: settings that change during the trace, and a ``MemPool`` with ``no_split``, are not in a trace;
    they show as an impossible event, or not at all where the blocks would have been the same.
    """
    return _Follower(segments).run(action, address, size, stream, conf)


def final_state(
    segments: Sequence[SegmentState],
    action: npt.ArrayLike,
    address: npt.ArrayLike,
    size: npt.ArrayLike,
    stream: npt.ArrayLike,
    conf: AllocatorConf | None = None,
    *,
    pool: npt.ArrayLike | None = None,
) -> tuple[SegmentState, ...]:
    """What the allocator holds after the last event of a trace; errors as in `follow`.

    Args:
        segments, action, address, size, stream, conf: as in `follow`.
        pool: torch's id of each event's private pool, 0, 0 for none; shape ``(events, 2)``. None: nobody knows, and
            what came from the driver during the trace is taken to be of none.

    Returns:
        The segments in order of address. ``requested`` of free blocks is 0: the trace does not keep it.
    """
    follower = _Follower(segments)
    follower.run(action, address, size, stream, conf, pool)
    return follower.state()


class _Follower:
    """Maps of all free and all owned blocks by address; segments matter only where blocks could merge across them."""

    def __init__(self, segments: Sequence[SegmentState]) -> None:
        self.free: dict[int, int] = {}  # start -> bytes
        self.ends: dict[int, int] = {}  # end of a free block -> its start
        self.owned: dict[int, tuple[int, int]] = {}  # start -> bytes, bytes requested
        self.pending: set[int] = set()  # starts of owned blocks that were given back but are still in use
        # Blocks of two segments never merge, even where the segments touch. Counted: one's end can be another's start.
        self.walls: dict[int, int] = {}
        self.segments: dict[int, Extent] = {}  # by start; without the expandable
        self.ranges = Ranges()
        for segment in segments:
            if segment.expandable:
                self.ranges.add(segment.address, segment.size, segment.stream, segment.small, segment.pool)
            else:
                self._add_segment(segment.address, (segment.size, segment.stream, segment.small, segment.pool))
            for block in segment.blocks:
                if block.state == "inactive":
                    self.free[block.address] = block.size
                    self.ends[block.address + block.size] = block.address
                else:
                    self.owned[block.address] = (block.size, block.requested)
                    if block.state == "active_pending_free":
                        self.pending.add(block.address)

    def _add_segment(self, address: int, extent: Extent) -> None:
        self.segments[address] = extent
        for wall in (address, address + extent[0]):
            self.walls[wall] = self.walls.get(wall, 0) + 1

    def _drop_segment(self, address: int, size: int) -> None:
        del self.segments[address]
        for wall in (address, address + size):
            self.walls[wall] -= 1
            if not self.walls[wall]:
                del self.walls[wall]

    def _insert(self, address: int, size: int) -> None:
        """A free block, merged with its free neighbours."""
        end = address + size
        if address in self.ends and address not in self.walls:
            address = self.ends.pop(address)
        if end in self.free and end not in self.walls:
            end += self.free.pop(end)
        self.free[address] = end - address
        self.ends[end] = address

    def _cut(self, address: int, size: int) -> bool:
        """Take a range out of the free block around it; False: no free block has all of it."""
        end = address + size
        start = address
        if start not in self.free:
            # Rare (an unmap in the middle of a block), so a walk over all free blocks does.
            start = next((each for each, length in self.free.items() if each <= address < each + length), -1)
        if start < 0 or start + self.free[start] < end:
            return False
        old_end = start + self.free.pop(start)
        del self.ends[old_end]
        for left, right in ((start, address), (end, old_end)):
            if left < right:
                self.free[left] = right - left
                self.ends[right] = left
        return True

    def run(
        self,
        action: npt.ArrayLike,
        address: npt.ArrayLike,
        size: npt.ArrayLike,
        stream: npt.ArrayLike,
        conf: AllocatorConf | None,
        pool: npt.ArrayLike | None = None,
    ) -> Ints:
        conf = conf or AllocatorConf()
        actions = np.asarray(action)
        sizes = np.asarray(size, np.int64)
        rounded = conf.round_sizes(sizes)
        expandable = conf.expandable_segments or bool((actions == SEGMENT_MAP).any())
        smallest_rest = conf.smallest_rests(rounded, expandable=expandable)
        pools = pools_of(pool, len(actions))
        blocks = [0] * len(actions)

        def fail(why: str) -> NoReturn:
            known = np.where(actions == ALLOC, rounded, 0)
            known[:index] = blocks[:index]
            raise ImpossibleEvent(index, known, why)

        # This loop is the cost of every profile's exit: locals instead of attributes, no calls on the common path.
        free, ends, owned, pending, walls = self.free, self.ends, self.owned, self.pending, self.walls
        columns = zip(
            actions.tolist(),
            np.asarray(address, np.int64).tolist(),
            sizes.tolist(),
            rounded.tolist(),
            smallest_rest.tolist(),
            np.asarray(stream, np.int64).tolist(),
            strict=True,
        )
        for index, (code, where, requested, need, smallest, line) in enumerate(columns):
            if code == ALLOC:
                if where not in free:
                    fail(f"{requested} bytes were put at {where:#x}, where no free block starts")
                have = free[where]
                rest = have - need
                if rest < 0:
                    fail(f"{requested} bytes were put at {where:#x}, into a free block of {have}")
                del free[where]
                if rest >= smallest:
                    ends[where + have] = where + need
                    free[where + need] = rest
                    have = need
                else:
                    del ends[where + have]
                owned[where] = (have, requested)
                blocks[index] = have
            elif code == FREE_COMPLETED:
                if where not in owned:
                    fail(f"a block at {where:#x} became free, where none is in use")
                if pending:
                    pending.discard(where)
                end = where + owned.pop(where)[0]
                if where in ends and where not in walls:
                    where = ends.pop(where)
                if end in free and end not in walls:
                    end += free.pop(end)
                free[where] = end - where
                ends[end] = where
            elif code == FREE:
                if where not in owned:
                    fail(f"a block at {where:#x} was given back, where none is in use")
                pending.add(where)
            elif code == SEGMENT_ALLOC:
                if where in self.segments:
                    fail(f"a segment came at {where:#x}, where one is already")
                self._add_segment(where, (requested, line, conf.is_small_segment(requested), pools[index]))
                self._insert(where, requested)
            elif code == SEGMENT_FREE:
                if self.segments.get(where, (0,))[0] != requested or free.get(where) != requested:
                    fail(f"a segment of {requested} bytes at {where:#x} went back, which is not there or not free")
                self._drop_segment(where, requested)
                self._cut(where, requested)
            elif code == SEGMENT_MAP:
                self.ranges.add(where, requested, line, conf.is_small_segment(requested), pools[index])
                self._insert(where, requested)
            elif code == SEGMENT_UNMAP:
                if not self._cut(where, requested):
                    fail(f"{requested} bytes at {where:#x} were unmapped, which are not free")
                self.ranges.remove(where, requested)
        return np.array(blocks, np.int64)

    def state(self) -> tuple[SegmentState, ...]:
        found = [BlockState(address, size) for address, size in self.free.items()]
        for address, (size, requested) in self.owned.items():
            use: BlockUse = "active_pending_free" if address in self.pending else "active_allocated"
            found.append(BlockState(address, size, requested, use))
        return assemble(found, self.segments, self.ranges)


Extent = tuple[int, int, bool, PoolId]
"""Of a segment or a mapped range: bytes, stream, whether it is of a small pool, the private pool."""


def pools_of(pool: npt.ArrayLike | None, events: int) -> list[PoolId]:
    """Each event's private pool, from torch's ids of them; None: of no event is it known, and none is taken."""
    return [NO_POOL] * events if pool is None else [(major, minor) for major, minor in np.asarray(pool).tolist()]


class Ranges:
    """Unbroken mapped ranges of expandable segments; no two of them overlap."""

    def __init__(self) -> None:
        self.spans: dict[int, Extent] = {}  # by start
        self._starts: list[int] = []  # in order: a stranger's trace can have very many

    def add(self, address: int, size: int, stream: int, small: bool, pool: PoolId) -> None:
        end = address + size
        place = bisect_left(self._starts, address)
        neighbours = [self._starts[place - 1]] if place else []
        neighbours += [end] if end in self.spans else []
        for start in neighbours:
            length, other_stream, other_small, other_pool = self.spans[start]
            if (other_stream, other_small) == (stream, small) and (start + length == address or start == end):
                self._drop(start)
                address, end, pool = min(address, start), max(end, start + length), other_pool
        self._put(address, (end - address, stream, small, pool))

    def remove(self, address: int, size: int) -> bool:
        end = address + size
        place = bisect_right(self._starts, address)
        if not place:
            return False
        start = self._starts[place - 1]
        length, stream, small, pool = self.spans[start]
        if end > start + length:
            return False
        self._drop(start)
        if start < address:
            self._put(start, (address - start, stream, small, pool))
        if end < start + length:
            self._put(end, (start + length - end, stream, small, pool))
        return True

    def _put(self, start: int, extent: Extent) -> None:
        if start not in self.spans:
            insort(self._starts, start)
        self.spans[start] = extent

    def _drop(self, start: int) -> None:
        del self.spans[start]
        del self._starts[bisect_left(self._starts, start)]


def assemble(blocks: list[BlockState], whole: dict[int, Extent], ranges: Ranges) -> tuple[SegmentState, ...]:
    """Segments in order of address, with their blocks; what no block covers becomes a free one."""
    segments = [
        SegmentState(address, size, (), stream, small, address in ranges.spans, pool)
        for address, (size, stream, small, pool) in [*whole.items(), *ranges.spans.items()]
    ]
    return tuple(fill(segments, blocks))
