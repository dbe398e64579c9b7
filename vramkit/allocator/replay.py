"""Serve the requests of a tape: what the allocator would do with them. Knows tapes; decides no block."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..tape.action_codes import ALLOC, FREE, FREE_COMPLETED, SEGMENT_ALLOC
from ..tape.events import EVENT, SEGMENT, Ints, Table, Tape
from .blocks import LinkedBlock
from .core import DeviceCachingAllocator
from .reserve import SimulatedOutOfMemory
from .states import NO_POOL, BlockState, PoolId, SegmentState, fill

BOTH, FLUSH, RELEASE = 101, 102, 103
"""What a step does that is no `Action`: a free that completes at once, a call of `empty_cache`, the end of a pool."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What became of a tape's requests."""

    source: Tape
    """The tape that was replayed."""
    blocks: Ints
    """Bytes of each allocation's block; 0: it was not reached. Shape ``(allocations,)``."""
    addresses: Ints
    """Address of each allocation's block; shape ``(allocations,)``."""
    segment_events: tuple[tuple[int, int, int, int, int, PoolId], ...]
    """Event of the tape during which it happened, action, address, bytes, stream, private pool."""
    segments: Table
    """What the allocator held before the first event; dtype ``SEGMENT``."""
    peak_allocated: int
    """Highest bytes in blocks, what ``max_memory_allocated()`` would say."""
    peak_reserved: int
    """Highest bytes in segments, what ``max_memory_reserved()`` would say."""
    out_of_memory: SimulatedOutOfMemory | None = None
    """Why the replay ended early; None: every request was served."""
    failed_event: int = -1
    """Index of the event that could not be served; -1: none."""

    @property
    def fits(self) -> bool:
        """Whether every request was served."""
        return self.out_of_memory is None

    @cached_property
    def tape(self) -> Tape:
        """The tape as the simulated allocator would have recorded it, up to the event that could not be served.

        Blocks, addresses and segments are the simulator's; phases, modules, steps and times are the source's.
        """
        source = self.source
        end = len(source.events) if self.failed_event < 0 else self.failed_event
        events = source.events[:end]
        kept = np.flatnonzero(events["action"] <= FREE_COMPLETED)
        segments = np.zeros(len(self.segment_events), EVENT)
        at = np.array([each[0] for each in self.segment_events], np.int64)
        if len(at):
            for name in ("phase", "module", "step", "time"):
                segments[name] = source.events[name][at]
            for column, name in enumerate(("action", "address", "size", "stream", "pool"), 1):
                segments[name] = [each[column] for each in self.segment_events]
            segments["allocation"] = -1
        # Segment events go before the request that caused them: half a place before it.
        places = np.concatenate([kept, at - 0.5])
        order = np.argsort(places, kind="stable")
        merged = np.concatenate([events[kept], segments])[order]
        place = np.full(len(source.events), -1, np.int64)
        is_kept = order < len(kept)
        place[kept[order[is_kept]]] = np.flatnonzero(is_kept)

        passes = source.passes.copy()
        for name in ("begin", "end"):
            passes[name] = np.searchsorted(places[order], passes[name] - 0.5)

        allocations = source.allocations.copy()
        for name in ("born", "died"):
            known = allocations[name] >= 0
            allocations[name][known] = place[allocations[name][known]]
        allocations["block"] = self.blocks
        allocations["address"] = self.addresses
        of_block = merged["action"] <= FREE_COMPLETED
        merged["address"][of_block] = self.addresses[merged["allocation"][of_block]]
        if end < len(source.events):
            # What the replay never reached is not on the new tape.
            reached = (source.allocations["born"] < end) & (self.blocks > 0)
            rows = np.full(len(allocations), -1, np.int64)
            rows[reached] = np.arange(int(reached.sum()))
            merged["allocation"][of_block] = rows[merged["allocation"][of_block]]
            allocations = allocations[reached]
        return replace(source, events=merged, allocations=allocations, segments=self.segments, passes=passes)


def replay(allocator: DeviceCachingAllocator, tape: Tape, *, flushes: bool = True) -> Replay:
    """Serve all requests of a tape.

    An allocator that has served nothing yet begins with what the tape had before its first event: its segments where
    the tape knows them, else its living allocations as so many requests.

    Args:
        allocator: serves; it goes on from the state that it has.
        tape: requests and frees. Where none of its events is a ``FREE_COMPLETED``, a block can be used again at once.
        flushes: take an unbroken run of segments that went back as a call of ``empty_cache()``, or, of segments of a
            private pool, as the end of what used it. A tape does not say why segments went back: of a recording that
            ran short of memory itself, give False.

    Returns:
        Blocks, segments and peaks. When a request can't be served the replay ends there, and the result says so.
    """
    allocations = tape.allocations
    count = len(allocations)
    handles: list[LinkedBlock | None] = [None] * count
    blocks, addresses = [0] * count, [0] * count
    requested, stream = allocations["requested"].tolist(), allocations["stream"].tolist()
    pools = _pools(allocations)
    if not allocator.reserved:
        _begin(allocator, tape, handles, pools)
        for row, handle in enumerate(handles):
            if handle is not None:
                blocks[row], addresses[row] = handle.size, handle.address

    held = [
        (each.address, each.size, each.stream, each.small, each.expandable, each.pool) for each in allocator.segments()
    ]
    steps = requests_in(tape, flushes=flushes)
    log = allocator.events
    seen = len(log)
    happened: list[tuple[int, int, int, int, int, PoolId]] = []
    serve, free = allocator.serve, allocator.free
    rounded = allocator.conf.round_sizes(allocations["requested"]).tolist()
    failure, failed = None, -1
    index = -1

    def note_segments() -> None:
        for place in range(seen, len(log)):
            if log[place][0] >= SEGMENT_ALLOC:
                happened.append((index, *log[place], allocator.pool_of_event.get(place, NO_POOL)))

    try:
        for index, code, row in steps:
            if code == ALLOC:
                if size := requested[row]:
                    handle = handles[row] = serve(size, rounded[row], stream[row], pools[row])
                    blocks[row] = handle.size
                    addresses[row] = handle.address
            elif code == BOTH:
                free(handles[row])
            elif code == FREE:
                handle = handles[row]
                if handle is not None:
                    allocator.give_back(handle)
            elif code == FREE_COMPLETED:
                handle = handles[row]
                # A block that was waiting came back already if the allocator had to synchronize.
                if handle is not None and handle.pending:
                    allocator.complete(handle)
            elif code == FLUSH:
                allocator.empty_cache()
            else:
                major, minor = tape.events["pool"][index].tolist()
                allocator.release_pool((major, minor))
                allocator.empty_cache((major, minor))
            if len(log) != seen:
                note_segments()
                seen = len(log)
    except SimulatedOutOfMemory as error:
        failure, failed = error, index
        note_segments()
    return Replay(
        source=tape,
        blocks=np.array(blocks, np.int64),
        addresses=np.array(addresses, np.int64),
        segment_events=tuple(happened),
        segments=np.array(held, SEGMENT),
        peak_allocated=allocator.peak_allocated_bytes,
        peak_reserved=allocator.peak_reserved_bytes,
        out_of_memory=failure,
        failed_event=failed,
    )


def requests_in(tape: Tape, *, flushes: bool) -> list[tuple[int, int, int]]:
    """What has to be done, as (event, code, row): frees that complete at once are one step, and so is a flush."""
    action = tape.events["action"].astype(np.int64)
    row = tape.events["allocation"].astype(np.int64)
    is_free = action == FREE
    code = np.where(action <= FREE_COMPLETED, action, -1)
    if (action == FREE_COMPLETED).any():
        at_once = np.flatnonzero(is_free[:-1] & (action[1:] == FREE_COMPLETED) & (row[:-1] == row[1:]))
        code[at_once] = BOTH
        code[at_once + 1] = -1
    else:
        code[is_free] = BOTH
    if flushes:
        code[tape.flushes] = FLUSH
        code[tape.flushes & tape.events["pool"].any(axis=1)] = RELEASE
    done = np.flatnonzero(code >= 0)
    return list(zip(done.tolist(), code[done].tolist(), row[done].tolist(), strict=True))


def _pools(table: Table) -> list[PoolId]:
    """The column ``pool`` of a table."""
    if not table["pool"].any():
        return [NO_POOL] * len(table)
    return [(major, minor) for major, minor in table["pool"].tolist()]


def _begin(
    allocator: DeviceCachingAllocator, tape: Tape, handles: list[LinkedBlock | None], pools: list[PoolId]
) -> None:
    """Give the allocator what the tape had before its first event."""
    before = np.flatnonzero(tape.allocations["born"] < 0).tolist()
    if not len(tape.segments):
        for row in before:
            allocation = tape.allocations[row]
            handles[row] = allocator.malloc(int(allocation["requested"]), int(allocation["stream"]), pool=pools[row])
        return
    living = tape.allocations[before]
    places = living["address"].tolist()
    blocks = [
        BlockState(address, size, requested, "active_allocated")
        for address, size, requested in zip(places, living["block"].tolist(), living["requested"].tolist(), strict=True)
    ]
    segments = [
        SegmentState(address, size, (), stream, small, expandable, pool)
        for (address, size, stream, small, expandable, _), pool in zip(
            tape.segments.tolist(), _pools(tape.segments), strict=True
        )
    ]
    allocator.restore(fill(segments, blocks))
    for row, address in zip(before, places, strict=True):
        handles[row] = allocator.active[address]
