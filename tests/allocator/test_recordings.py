"""The simulator repeats what the allocators of real GPUs did, event by event; a wrong simulator does not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import allocator_recordings as recordings
import numpy as np
import pytest
from allocator_recordings import resimulate, traces, without_free_addresses

from vramkit.allocator import (
    AllocatorConf,
    CachingAllocator,
    DeviceCachingAllocator,
    ImpossibleEvent,
    SimulatedOutOfMemory,
    final_state,
    follow,
    initial_state,
)
from vramkit.errors import UsageError
from vramkit.tape.events import ALLOCATION, EVENT, SEGMENT, Action, Tape

TRACES = [pytest.param(trace, id=trace.name) for trace in recordings.all_traces()]


def owned(segments):
    """Segments with what can be compared of their blocks: of a free one a trace does not tell who had it last."""
    return [
        replace(
            segment,
            blocks=tuple(
                block if block.state != "inactive" else replace(block, requested=0) for block in segment.blocks
            ),
        )
        for segment in segments
    ]


def test_all_recordings_are_here():
    assert len(recordings.NAMES) >= 16
    assert {trace.conf.expandable_segments for trace in recordings.all_traces()} == {True, False}


@pytest.mark.parametrize("trace", TRACES)
def test_the_simulator_repeats_every_event(trace):
    allocator = resimulate(trace)

    assert without_free_addresses(allocator.events) == without_free_addresses(trace.events)
    assert owned(allocator.segments()) == owned(trace.segments)


@pytest.mark.parametrize("trace", TRACES)
def test_following_a_trace_gives_the_blocks_of_the_final_snapshot(trace):
    after = final_state(trace.start.segments, *trace.columns, trace.conf)

    assert owned(after) == owned(trace.segments)


@pytest.mark.parametrize("trace", TRACES)
def test_following_and_simulating_agree_on_every_block(trace):
    blocks = follow(trace.start.segments, *trace.columns, trace.conf)

    allocator = resimulate(trace)

    # each block's size, from how the simulator's statistics count blocks
    start = sum(b.size for s in trace.start.segments for b in s.blocks if b.state != "inactive")
    assert blocks.sum() + start == allocator.total.bytes_in
    action = trace.columns[0]
    assert ((blocks > 0) == (action == Action.ALLOC)).all()
    assert (blocks[action == Action.ALLOC] >= trace.columns[2][action == Action.ALLOC]).all()


@pytest.mark.parametrize("trace", TRACES)
def test_a_trace_without_its_beginning_is_known_but_for_the_blocks_that_are_named(trace):
    """Where a trace's own beginning is there, cutting it off shows what undoing events can and can't know."""
    middle = len(trace.events) // 2
    first, second = (
        [column[:middle] for column in trace.columns],
        [column[middle:] for column in trace.columns],
    )
    truth = final_state(trace.start.segments, *first, trace.conf)

    found = initial_state(trace.segments, *second, trace.conf)

    ambiguous = {block.address: block for block in found.ambiguous}
    true_blocks = {b.address: b for s in truth for b in s.blocks if b.state != "inactive"}
    for segment in found.segments:
        for block in segment.blocks:
            if block.state != "inactive":
                true = true_blocks.pop(block.address)
                assert (block.requested, block.state) == (true.requested, true.state)
                unsure = ambiguous.get(block.address)
                if unsure is None:
                    assert block.size == true.size
                else:
                    assert unsure.size <= true.size <= unsure.largest
    assert not true_blocks
    assert [(s.address, s.size, s.stream) for s in found.segments] == [(s.address, s.size, s.stream) for s in truth]


def test_blocks_of_unknown_size_are_named_where_a_recording_starts_warm():
    named = {trace.name: trace.start.ambiguous for trace in recordings.all_traces() if trace.start.ambiguous}

    assert named, "some recordings start warm and leave sizes open"
    for blocks in named.values():
        assert all(block.requested <= block.size < block.largest <= block.size + (1 << 20) for block in blocks)


# ---- negative controls: each of these simulators is wrong in one thing


class HighestAddress(DeviceCachingAllocator):
    """Takes the highest address among equally large blocks."""

    def cached(self, pool, need, stream):
        keys = pool.sorted.get(stream, [])
        fitting = [pool.blocks[key] for key in keys if pool.blocks[key].size >= need]
        if not fitting:
            return None
        best = max(fitting, key=lambda block: (-block.size, block.address))
        pool.remove(best)
        return best


class FirstFit(DeviceCachingAllocator):
    """Takes the lowest address of all blocks that are large enough."""

    def cached(self, pool, need, stream):
        fitting = [block for block in pool.in_order() if block.stream == stream and block.size >= need]
        if not fitting:
            return None
        first = min(fitting, key=lambda block: block.address)
        pool.remove(first)
        return first


class OldestFirst(DeviceCachingAllocator):
    """torch 2.14's tie-break, under which none of these recordings was made."""

    def __init__(self, **options):
        super().__init__(**options | {"tie_break": "age"})


class SmallFirst(DeviceCachingAllocator):
    """Gives the small pool back before the large one."""

    def release_all(self):
        self.synchronize()
        for pool in self.pools[(0, 0)]:
            self._release_blocks(pool)


CONTROLS = {
    "highest address": {"kind": HighestAddress},
    "first fit": {"kind": FirstFit},
    "oldest segment first": {"kind": OldestFirst},
    "small pool given back first": {"kind": SmallFirst},
    "segments of 12 MiB": {"conf": AllocatorConf(large_segment_size=12 << 20)},
    "segments of 32 MiB": {"conf": AllocatorConf(large_segment_size=32 << 20)},
    "rests of 512 bytes are split off": {"conf": AllocatorConf(expandable_segments=True)},
    "requests rounded to eighths": {"conf": AllocatorConf(roundup_power2_divisions=(8,) * 16)},
    "large blocks are not split": {"conf": AllocatorConf(max_split_size=20 << 20)},
}


def repeats(trace, **wrong):
    try:
        allocator = resimulate(trace, **wrong)
    except (AssertionError, KeyError, SimulatedOutOfMemory, UsageError):
        return False
    return without_free_addresses(allocator.events) == without_free_addresses(trace.events)


@pytest.mark.parametrize("name", CONTROLS)
def test_a_wrong_simulator_does_not_repeat_the_recordings(name):
    native = [trace for trace in recordings.all_traces() if not trace.conf.expandable_segments]

    verdicts = Counter(repeats(trace, **CONTROLS[name]) for trace in native)

    assert verdicts[False] >= 1


def test_the_trace_of_other_settings_is_impossible_to_follow():
    (trace,) = traces("opt125m-zeroth-order")

    with pytest.raises(ImpossibleEvent, match=r"(?i)event 1: .* into a free block of") as caught:
        follow(trace.start.segments, *trace.columns, AllocatorConf(roundup_power2_divisions=(4,) * 16))

    right = follow(trace.start.segments, *trace.columns, trace.conf)
    assert 0 < caught.value.event < len(trace.events)
    assert len(caught.value.blocks) == len(right)


# ---- alone, without the recorded addresses


def tape_of(trace):
    """The trace as a tape, as the recorder of CUDA histories would write it."""
    events = np.zeros(len(trace.events), EVENT)
    for name, column in zip(("action", "address", "size", "stream"), trace.columns, strict=True):
        events[name] = column
    events["allocation"] = -1
    rows, alive = [], {}
    for segment in trace.start.segments:
        for block in segment.blocks:
            if block.state != "inactive":
                alive[block.address] = len(rows)
                rows.append([-1, -1, block.requested, block.size, block.address, segment.stream])
    blocks = follow(trace.start.segments, *trace.columns, trace.conf)
    for index, (action, address, size, stream) in enumerate(trace.events):
        if action == Action.ALLOC:
            alive[address] = len(rows)
            rows.append([index, -1, size, blocks[index], address, stream])
        if action <= Action.FREE_COMPLETED:
            row = alive[address] if action != Action.FREE_COMPLETED else alive.pop(address)
            events["allocation"][index] = row
            if action == Action.FREE:
                rows[row][1] = index
    allocations = np.zeros(len(rows), ALLOCATION)
    for name, column in zip(
        ("born", "died", "requested", "block", "address", "stream"), zip(*rows, strict=True), strict=True
    ):
        allocations[name] = column
    start = [(s.address, s.size, s.stream, s.small, s.expandable, s.pool) for s in trace.start.segments]
    return Tape(events=events, allocations=allocations, segments=np.array(start, SEGMENT))


@pytest.mark.parametrize("trace", TRACES)
def test_alone_the_simulator_reserves_what_the_gpu_reserved(trace):
    tape = tape_of(trace)

    replay = CachingAllocator(conf=trace.conf, tie_break="address").replay(tape)

    assert replay.fits
    assert replay.peak_reserved == tape.peak_reserved
    assert replay.peak_allocated == tape.peak_allocated
    # the tape that it writes tells the same story
    assert replay.tape.peak_reserved == replay.peak_reserved
    assert replay.tape.peak_allocated == replay.peak_allocated
    assert len(replay.tape.allocations) == len(tape.allocations)


def test_the_order_of_addresses_can_change_what_is_reserved():
    """The one recording of all that were replayed in which it does: 5,534 MiB falling, as recorded, 5,926 rising."""
    (trace,) = traces("layerwise-compression")
    tape = tape_of(trace)

    falling = CachingAllocator(address_order="falling", tie_break="address").replay(tape)
    rising = CachingAllocator(address_order="rising", tie_break="address").replay(tape)

    assert falling.peak_reserved == 5534 << 20 == tape.peak_reserved
    assert rising.peak_reserved == 5926 << 20


@pytest.mark.parametrize("trace", TRACES)
def test_with_ties_broken_by_age_addresses_decide_nothing(trace):
    tape = tape_of(trace)

    falling = CachingAllocator(conf=trace.conf, address_order="falling").replay(tape)
    # What was there at the start has ages by its addresses, so only traces that start empty can be turned round.
    rising = CachingAllocator(conf=trace.conf, address_order="rising" if not len(tape.segments) else "falling")

    assert rising.replay(tape).peak_reserved == falling.peak_reserved
