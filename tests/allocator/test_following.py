"""Following a trace gives the simulator's own blocks, forwards and backwards, and impossible events are named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vramkit.allocator import (
    NO_POOL,
    AllocatorConf,
    BlockState,
    DeviceCachingAllocator,
    ImpossibleEvent,
    SegmentState,
    final_state,
    follow,
    initial_state,
    segments_from_torch,
)
from vramkit.allocator.trace_forward import Ranges
from vramkit.errors import SnapshotError
from vramkit.tape.events import Action

MIB = 1 << 20
CONFS = [
    "",
    "max_split_size_mb:30",
    "expandable_segments:True",
    "roundup_power2_divisions:4",
    "large_segment_size_mb:12",
    "expandable_segments:True,roundup_power2_divisions:8",
]
sizes = st.one_of(st.integers(1, 4096), st.integers(1, 2 * MIB), st.integers(MIB, 60 * MIB))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("malloc"), sizes, st.sampled_from([0, 0, 7])),
        st.tuples(st.just("free"), st.integers(0, 1000)),
        st.tuples(st.just("give back"), st.integers(0, 1000)),
        st.tuples(st.just("complete"), st.integers(0, 1000)),
        st.just(("empty",)),
    ),
    min_size=5,
    max_size=60,
)


def run(allocator, program):
    """Run a program on a simulator; returns the bytes of each block that it handed out, in order."""
    alive, pending, given = [], [], []
    for what, *arguments in program:
        if what == "malloc":
            alive.append(allocator.malloc(*arguments))
            given.append(alive[-1].size)
        elif what == "empty":
            allocator.empty_cache()
            pending.clear()
        elif what == "complete":
            if pending:
                allocator.complete(pending.pop(arguments[0] % len(pending)))
        elif alive:
            block = alive.pop(arguments[0] % len(alive))
            if what == "free":
                allocator.free(block)
            else:
                allocator.give_back(block)
                pending.append(block)
    return given


def columns(events):
    return tuple(np.array(column, np.int64) for column in zip(*events, strict=True)) if events else ([],) * 4


def in_use(segments):
    return {block.address: block for segment in segments for block in segment.blocks if block.state != "inactive"}


@settings(deadline=None)
@given(st.sampled_from(CONFS), steps, steps)
def test_following_gives_the_blocks_that_were_given(conf, before, program):
    allocator = DeviceCachingAllocator(conf=AllocatorConf.parse(conf), history=True)
    run(allocator, before)
    start = allocator.segments()
    allocator.events.clear()

    given_blocks = run(allocator, program)

    trace = columns(allocator.events)
    blocks = follow(start, *trace, AllocatorConf.parse(conf))
    assert [block for block in blocks.tolist() if block] == given_blocks
    after = final_state(start, *trace, AllocatorConf.parse(conf))
    assert in_use(after) == in_use(allocator.segments())
    assert [(s.address, s.size, s.small) for s in after] == [(s.address, s.size, s.small) for s in allocator.segments()]


@settings(deadline=None)
@given(st.sampled_from(CONFS), steps, steps)
def test_undoing_a_trace_gives_its_start_but_for_the_blocks_that_are_named(conf, before, program):
    allocator = DeviceCachingAllocator(conf=AllocatorConf.parse(conf), history=True)
    run(allocator, before)
    start = allocator.segments()
    allocator.events.clear()
    run(allocator, program)

    found = initial_state(allocator.segments(), *columns(allocator.events), AllocatorConf.parse(conf))

    unsure = {block.address: block for block in found.ambiguous}
    true, guessed = in_use(start), in_use(found.segments)
    assert guessed.keys() == true.keys()
    for address, block in guessed.items():
        assert (block.requested, block.state) == (true[address].requested, true[address].state)
        if address in unsure:
            assert unsure[address].size <= true[address].size <= unsure[address].largest
        else:
            assert block.size == true[address].size
    assert [(s.address, s.size, s.small, s.expandable) for s in found.segments] == [
        (s.address, s.size, s.small, s.expandable) for s in start
    ]


A = 0x7F0000000000
SEGMENT = SegmentState(A, 20 * MIB, (BlockState(A, 20 * MIB),))
WITH_BLOCK = SegmentState(
    A, 20 * MIB, (BlockState(A, 2 * MIB, 2 * MIB, "active_allocated"), BlockState(A + 2 * MIB, 18 * MIB))
)


@pytest.mark.parametrize(
    ("segments", "event", "found"),
    [
        ([], (Action.ALLOC, A, 512), "no free block starts"),
        ([SEGMENT], (Action.ALLOC, A + 512, 2 * MIB), "no free block starts"),
        ([SEGMENT], (Action.ALLOC, A, 21 * MIB), "into a free block of"),
        ([SEGMENT], (Action.FREE, A, 512), "none is in use"),
        ([SEGMENT], (Action.FREE_COMPLETED, A, 512), "none is in use"),
        ([SEGMENT], (Action.SEGMENT_ALLOC, A, 20 * MIB), "one is already"),
        ([], (Action.SEGMENT_FREE, A, 20 * MIB), "not there or not free"),
        ([WITH_BLOCK], (Action.SEGMENT_FREE, A, 20 * MIB), "not there or not free"),
        ([WITH_BLOCK], (Action.SEGMENT_UNMAP, A, 20 * MIB), "not free"),
    ],
)
def test_an_impossible_event_is_named(segments, event, found):
    trace = [(Action.ALLOC, A + 2 * MIB, 3 * MIB, 0)] if segments == [WITH_BLOCK] else []
    trace += [(*event, 0)]

    with pytest.raises(ImpossibleEvent, match=found) as caught:
        follow(segments, *columns(trace))

    assert caught.value.event == len(trace) - 1
    assert isinstance(caught.value, SnapshotError)


def test_after_an_impossible_event_the_requests_are_left_rounded():
    trace = [
        (Action.ALLOC, A, 19 * MIB + 700 * 1024, 0),
        (Action.ALLOC, A, 3 * MIB + 1, 0),
        (Action.FREE, A, 1, 0),
    ]

    with pytest.raises(ImpossibleEvent) as caught:
        follow([SEGMENT], *columns(trace))

    assert caught.value.blocks.tolist() == [20 * MIB, 3 * MIB + 512, 0]


@pytest.mark.parametrize(
    ("segments", "event", "found"),
    [
        ([SEGMENT], (Action.ALLOC, A, 512), "not there afterwards"),
        ([WITH_BLOCK], (Action.FREE_COMPLETED, A, 2 * MIB), "still in use"),
        ([SEGMENT], (Action.FREE, A, 512), "did not become free"),
        ([], (Action.SEGMENT_ALLOC, A, 20 * MIB), "not there afterwards"),
        ([SEGMENT], (Action.SEGMENT_FREE, A, 20 * MIB), "still there"),
        ([SEGMENT], (Action.SEGMENT_MAP, A, 20 * MIB), "not there afterwards"),
    ],
)
def test_an_event_that_can_not_be_undone_is_named(segments, event, found):
    with pytest.raises(ImpossibleEvent, match=found) as caught:
        initial_state(segments, *columns([(*event, 0)]))

    assert caught.value.event == 0


def test_a_block_of_unknown_size_keeps_a_gap_that_no_split_would_have_left():
    """Its right neighbour is 500 KiB away: too little to have been split off, so it was the block's."""
    right = BlockState(A + 4 * MIB, 16 * MIB, 16 * MIB, "active_allocated")
    after = SegmentState(A, 20 * MIB, (BlockState(A, 4 * MIB), right))
    trace = [(Action.FREE, A, 4 * MIB - 500 * 1024, 0), (Action.FREE_COMPLETED, A, 4 * MIB - 500 * 1024, 0)]

    found = initial_state([after], *columns(trace))

    assert found.segments[0].blocks[0].size == 4 * MIB
    assert found.ambiguous == ()


def test_a_block_of_unknown_size_before_a_large_gap_is_ambiguous():
    after = SegmentState(A, 20 * MIB, (BlockState(A, 20 * MIB),))
    trace = [(Action.FREE, A, 4 * MIB, 0), (Action.FREE_COMPLETED, A, 4 * MIB, 0)]

    found = initial_state([after], *columns(trace))

    (block,) = found.ambiguous
    assert (block.address, block.size, block.largest) == (A, 4 * MIB, 5 * MIB)


def test_an_allocation_behind_it_tells_the_size_of_such_a_block():
    after = SegmentState(A, 20 * MIB, (BlockState(A, 20 * MIB),))
    slack = 4 * MIB + 300 * 1024
    trace = [(Action.ALLOC, A + slack, 2 * MIB, 0)]
    trace += [(Action.FREE, A + slack, 2 * MIB, 0), (Action.FREE_COMPLETED, A + slack, 2 * MIB, 0)]
    trace += [(Action.FREE, A, 4 * MIB, 0), (Action.FREE_COMPLETED, A, 4 * MIB, 0)]

    found = initial_state([after], *columns(trace))

    assert found.segments[0].blocks[0].size == slack
    assert found.ambiguous == ()


def test_blocks_of_touching_segments_do_not_merge():
    trace = [
        (Action.SEGMENT_ALLOC, A, 20 * MIB, 0),
        (Action.SEGMENT_ALLOC, A + 20 * MIB, 20 * MIB, 0),
        (Action.ALLOC, A, 20 * MIB, 0),
        (Action.FREE, A, 20 * MIB, 0),
        (Action.FREE_COMPLETED, A, 20 * MIB, 0),
        (Action.SEGMENT_FREE, A, 20 * MIB, 0),
    ]

    after = final_state([], *columns(trace))

    assert [(segment.address, segment.size) for segment in after] == [(A + 20 * MIB, 20 * MIB)]


@pytest.mark.parametrize("conf", ["", "expandable_segments:True"])
def test_segments_that_a_trace_makes_are_of_their_private_pools(conf):
    allocator = DeviceCachingAllocator(conf=AllocatorConf.parse(conf), history=True)
    for pool in (NO_POOL, (0, 1), (0, 2)):
        allocator.malloc(30 * MIB, pool=pool)
        allocator.malloc(512, pool=pool)
    pools = [allocator.pool_of_event.get(event, NO_POOL) for event in range(len(allocator.events))]

    after = final_state([], *columns(allocator.events), AllocatorConf.parse(conf), pool=pools)

    assert after == allocator.segments()


def test_torchs_segments_become_values():
    torch_segment = {
        "device": 1,
        "address": A,
        "total_size": 2 * MIB,
        "stream": 3,
        "segment_type": "small",
        "segment_pool_id": (0, 1),
        "is_expandable": False,
        "blocks": [{"size": 512, "requested_size": 4, "address": A, "state": "active_awaiting_free"}],
    }

    (segment,) = segments_from_torch([torch_segment, {**torch_segment, "device": 0}], device=1)

    assert segment == SegmentState(
        A, 2 * MIB, (BlockState(A, 512, 4, "active_pending_free"),), 3, small=True, pool=(0, 1)
    )


@pytest.mark.parametrize("broken", [{}, {"address": A}, {"address": A, "blocks": [{"size": 1, "state": "odd"}]}])
def test_a_segment_without_its_keys_is_refused(broken):
    with pytest.raises(SnapshotError, match="torch"):
        segments_from_torch([broken])


# -- unbroken mapped ranges --------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12), st.integers(1, 4), st.integers(0, 1)), max_size=40))
def test_mapped_ranges_are_as_long_as_unbroken_pages_of_one_stream_are(steps):
    ranges, pages = Ranges(), {}
    for maps, first, count, stream in steps:
        wanted = range(first, first + count)
        if maps and not pages.keys() & set(wanted):
            ranges.add(first, count, stream, True, NO_POOL)
            pages |= dict.fromkeys(wanted, stream)
        elif not maps:
            # A range ends where the stream changes, so what is unmapped at once is of one stream.
            is_one = pages.keys() >= set(wanted) and len({pages[page] for page in wanted}) == 1
            assert ranges.remove(first, count) == is_one
            if is_one:
                pages = {page: each for page, each in pages.items() if page not in wanted}

    begins = [page for page in sorted(pages) if pages.get(page - 1) != pages[page]]
    expected = {}
    for begin in begins:
        length = next(n for n in range(1, 99) if pages.get(begin + n) != pages[begin])
        expected[begin] = (length, pages[begin], True, NO_POOL)
    assert ranges.spans == expected
