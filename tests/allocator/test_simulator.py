"""The simulator's own promises. That it does what torch does is shown in test_recordings and test_real_allocator."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vramkit
from vramkit.allocator import Addresses, AllocatorConf, CachingAllocator, DeviceCachingAllocator, SimulatedOutOfMemory
from vramkit.errors import UsageError, VramkitError
from vramkit.tape.events import ALLOCATION, EVENT, Action, Category, Phase, Tape

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def test_the_package_exports_it():
    assert vramkit.CachingAllocator is CachingAllocator
    assert vramkit.SimulatedOutOfMemory is SimulatedOutOfMemory


def test_its_public_names_are_those_that_its_readme_lists():
    readme = (Path(vramkit.__file__).parent / "allocator" / "README.md").read_text()
    [listed] = re.findall(r"^## What `CachingAllocator` shows$\n(.*?)^## ", readme, re.MULTILINE | re.DOTALL)

    public = {name for name in dir(CachingAllocator()) if not name.startswith("_")}

    assert public == set(re.findall(r"^\| `(\w+)", listed, re.MULTILINE))
    assert all(getattr(CachingAllocator, name).__doc__ for name in public)


def test_it_works_without_torch():
    code = "import sys, vramkit; vramkit.CachingAllocator().malloc(1); sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_is_handed_out_for_nothing():
    allocator = CachingAllocator()

    assert allocator.malloc(0) is None
    allocator.free(None)
    assert allocator.snapshot() == {"segments": [], "device_traces": [[]]}


@pytest.mark.parametrize(
    ("request_", "block", "segment"),
    [
        (1, 512, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
        (11 * MIB + 512 * KIB, 12 * MIB, 12 * MIB),  # the rest is too small to be split off
    ],
)
def test_a_request_costs_a_block_and_a_segment(request_, block, segment):
    allocator = CachingAllocator()

    given_block = allocator.malloc(request_)

    assert given_block.size == block == allocator.allocated_bytes
    assert allocator.reserved_bytes == segment


def test_the_smallest_block_that_fits_is_taken():
    allocator = CachingAllocator()
    blocks = [allocator.malloc(size * MIB) for size in (50, 30, 40)]
    for block in blocks:
        allocator.free(block)

    assert allocator.malloc(29 * MIB).address == blocks[1].address


def test_a_stream_gets_no_block_of_another():
    allocator = CachingAllocator()
    allocator.free(allocator.malloc(30 * MIB, 0))

    allocator.malloc(30 * MIB, 1)

    assert allocator.reserved_bytes == 60 * MIB


@pytest.mark.parametrize(("tie_break", "served"), [("age", True), ("address", False)])
def test_a_private_pool_gets_what_others_cached_since_2_12(tie_break, served):
    allocator = CachingAllocator(100 * MIB, tie_break=tie_break)
    allocator.free(allocator.malloc(60 * MIB))

    if served:
        allocator.malloc(60 * MIB, pool=(0, 1))
    else:
        with pytest.raises(SimulatedOutOfMemory):
            allocator.malloc(60 * MIB, pool=(0, 1))

    assert allocator.memory_stats()["num_alloc_retries"] == served


def test_a_private_pool_keeps_its_blocks_until_nobody_uses_it():
    allocator = CachingAllocator()
    allocator.free(allocator.malloc(30 * MIB, pool=(0, 1)))
    allocator.malloc(30 * MIB)

    allocator.empty_cache()
    kept = allocator.reserved_bytes
    allocator.release_pool((0, 1))
    allocator.empty_cache()

    assert (kept, allocator.reserved_bytes) == (60 * MIB, 30 * MIB)


def test_a_block_that_another_stream_uses_comes_back_when_that_is_over():
    allocator = CachingAllocator()
    block = allocator.malloc(30 * MIB)
    allocator.record_stream(block, 5)

    allocator.free(block)

    stats = allocator.memory_stats()
    assert (stats["allocated_bytes.all.current"], stats["active_bytes.all.current"]) == (0, 30 * MIB)
    allocator.complete(block)
    assert allocator.memory_stats()["active_bytes.all.current"] == 0


def test_a_segment_in_use_survives_empty_cache():
    allocator = CachingAllocator()
    small, large = allocator.malloc(2 * MIB), allocator.malloc(3 * MIB)
    allocator.free(small)

    allocator.empty_cache()

    assert allocator.reserved_bytes == 20 * MIB
    allocator.free(large)
    allocator.empty_cache()
    assert allocator.reserved_bytes == 0


def test_cached_segments_go_back_before_memory_runs_out():
    allocator = CachingAllocator(100 * MIB)
    allocator.free(allocator.malloc(60 * MIB))

    allocator.malloc(80 * MIB)

    stats = allocator.memory_stats()
    assert (stats["num_alloc_retries"], stats["num_ooms"], allocator.reserved_bytes) == (1, 0, 80 * MIB)


def test_running_out_of_memory_says_what_was_asked_and_what_there_was():
    allocator = CachingAllocator(100 * MIB, context=20 * MIB)
    allocator.malloc(60 * MIB)

    with pytest.raises(SimulatedOutOfMemory, match=r"30\.0 MiB") as caught:
        allocator.malloc(30 * MIB - 1)

    error = caught.value
    assert isinstance(error, VramkitError)
    assert (error.requested, error.needed) == (30 * MIB - 1, 30 * MIB)
    assert (error.allocated_bytes, error.reserved_bytes) == (60 * MIB, 60 * MIB)
    assert "20.0 MiB of the device is free" in str(error)
    assert allocator.memory_stats()["num_ooms"] == 1


def test_running_out_of_memory_can_be_sent_to_another_process():
    allocator = CachingAllocator(100 * MIB)
    with pytest.raises(SimulatedOutOfMemory) as caught:
        allocator.malloc(200 * MIB)

    copy = pickle.loads(pickle.dumps(caught.value))

    assert (type(copy), str(copy), vars(copy)) == (SimulatedOutOfMemory, str(caught.value), vars(caught.value))


def test_a_snapshot_of_a_failure_tells_the_free_memory_where_torch_does():
    allocator = CachingAllocator(100 * MIB, context=20 * MIB)
    with pytest.raises(SimulatedOutOfMemory):
        allocator.malloc(200 * MIB)

    [[entry]] = allocator.snapshot()["device_traces"]

    assert entry == {"action": "oom", "device_free": 80 * MIB, "size": 200 * MIB, "stream": 0}


def test_a_fraction_limits_segments_and_not_the_context():
    allocator = CachingAllocator(100 * MIB, "per_process_memory_fraction:0.5", context=40 * MIB)

    allocator.malloc(50 * MIB)

    with pytest.raises(SimulatedOutOfMemory, match="allowed"):
        allocator.malloc(1)


def test_a_fraction_of_a_device_without_end_means_nothing():
    with pytest.raises(UsageError, match="capacity"):
        CachingAllocator(conf="per_process_memory_fraction:0.5")


@pytest.mark.parametrize("options", [{"address_order": "sideways"}, {"tie_break": "size"}, {"conf": "nonsense:1"}])
def test_an_unknown_choice_is_refused(options):
    with pytest.raises(UsageError):
        CachingAllocator(**options)


@pytest.mark.parametrize("conf", ["", "expandable_segments:True"])
def test_a_device_without_end_has_no_more_memory_than_addresses(conf):
    allocator = DeviceCachingAllocator(conf=AllocatorConf.parse(conf))
    kept = allocator.malloc(1200 * GIB)  # more than an expandable segment's usual range
    before = allocator.device.used, allocator.reserved_bytes

    with pytest.raises(SimulatedOutOfMemory, match="no address is left"):
        allocator.malloc(1 << 62)

    assert (allocator.device.used, allocator.reserved_bytes) == before
    assert allocator.malloc(30 * MIB) is not None
    allocator.free(kept)
    allocator.empty_cache()
    assert allocator.device.used == allocator.reserved_bytes < GIB


def test_many_streams_have_an_expandable_segment_each():
    allocator = CachingAllocator(conf="expandable_segments:True")

    for stream in range(40):
        allocator.malloc(3 * MIB, stream)
        allocator.malloc(100, stream)

    assert allocator.reserved_bytes == 40 * (20 + 2) * MIB


def test_requests_that_fail_use_up_no_addresses():
    allocator = CachingAllocator(80 * GIB, "expandable_segments:True")
    for _ in range(2000):
        with pytest.raises(SimulatedOutOfMemory):
            allocator.malloc(100 * GIB)

    assert allocator.malloc(30 * MIB, 5) is not None


def test_sizes_may_be_texts_and_numpys_numbers():
    allocator = CachingAllocator("1 GiB", context="200 MiB")

    block = allocator.malloc(np.int64(700))
    with pytest.raises(SimulatedOutOfMemory, match=r"822\.0 MiB of the device is free"):
        allocator.malloc(900 * MIB)

    assert (block.size, block.requested) == (1024, 700)
    assert all(type(value) is int for value in allocator.memory_stats().values())
    with pytest.raises(SimulatedOutOfMemory, match=r"1\.00 GiB of the device is free"):
        CachingAllocator(np.int64(GIB)).malloc(2 * GIB)


@pytest.mark.parametrize("options", [{"capacity": "24 G"}, {"capacity": -5}, {"capacity": 24e9}, {"context": -1}])
def test_what_is_no_size_is_refused(options):
    with pytest.raises(UsageError):
        CachingAllocator(**options)


def test_a_handle_is_good_for_one_free_also_when_its_memory_is_used_again():
    allocator = CachingAllocator()
    old = allocator.malloc(30 * MIB)
    allocator.free(old)
    new = allocator.malloc(30 * MIB)
    assert new.address == old.address

    with pytest.raises(UsageError, match="once"):
        allocator.free(old)
    with pytest.raises(UsageError, match="before the free"):
        allocator.record_stream(old, 1)

    assert allocator.allocated_bytes == 30 * MIB
    allocator.free(new)
    assert allocator.allocated_bytes == 0


def test_misuse_is_refused():
    allocator = CachingAllocator()
    block = allocator.malloc(512)
    allocator.free(block)

    with pytest.raises(UsageError, match="once"):
        allocator.free(block)
    with pytest.raises(UsageError, match="Free it first"):
        allocator.complete(block)
    with pytest.raises(UsageError, match="0 bytes or more"):
        allocator.malloc(-1)
    with pytest.raises(UsageError, match="whole number"):
        allocator.malloc(10.5)
    uses = (allocator.free, allocator.complete, lambda block: allocator.record_stream(block, 1))
    for use in uses:
        with pytest.raises(UsageError, match=r"Got 5.*what malloc returned"):
            use(5)
    with pytest.raises(UsageError, match=r"profile\.tape"):
        allocator.replay(None)
    for fraction in (2, "0.5", float("nan")):
        with pytest.raises(UsageError, match="0 to 1"):
            allocator.set_memory_fraction(fraction)


def test_lowering_the_split_limit_on_the_way_is_refused_where_torch_fails():
    """torch would give a part of a segment back to the driver; that is an error of CUDA there."""
    allocator = CachingAllocator(100 * MIB)
    allocator.malloc(60 * MIB)
    allocator.free(allocator.malloc(30 * MIB))
    allocator.malloc(2 * MIB)
    allocator.configure("max_split_size_mb:20")

    with pytest.raises(UsageError, match="from the start"):
        allocator.malloc(19 * MIB)


def test_a_snapshot_has_torchs_form():
    allocator = CachingAllocator(history=True)
    allocator.malloc(700)

    snapshot = allocator.snapshot()

    (segment,) = snapshot["segments"]
    assert (segment["segment_type"], segment["total_size"], segment["requested_size"]) == ("small", 2 * MIB, 700)
    assert [block["state"] for block in segment["blocks"]] == ["active_allocated", "inactive"]
    assert [entry["action"] for entry in snapshot["device_traces"][0]] == ["segment_alloc", "alloc"]


def test_what_was_there_before_can_be_taken_over():
    first = CachingAllocator(conf="expandable_segments:True")
    blocks = [first.malloc(size) for size in (3 * MIB, 30 * MIB, 700, 5 * MIB)]
    first.free(blocks[1])
    second = CachingAllocator(conf="expandable_segments:True")

    second.restore(first.segments())

    assert second.segments() == first.segments()
    assert second.malloc(28 * MIB).address == first.malloc(28 * MIB).address
    with pytest.raises(UsageError, match="new CachingAllocator"):
        second.restore(first.segments())


def test_peaks_begin_anew_when_reset():
    allocator = CachingAllocator()
    allocator.free(allocator.malloc(30 * MIB))

    allocator.reset_peak_memory_stats()

    assert allocator.peak_allocated_bytes == 0
    assert allocator.peak_reserved_bytes == 30 * MIB


@pytest.mark.parametrize(("order", "sign"), [("falling", -1), ("rising", 1)])
def test_addresses_run_in_one_direction_and_gaps_are_used_again(order, sign):
    addresses = Addresses(order)
    first, second, third = (addresses.take(20 * MIB) for _ in range(3))

    addresses.give_back(second, 20 * MIB)

    assert sign * (second - first) == sign * (third - second) == 20 * MIB
    assert addresses.take(20 * MIB) == second
    assert sign * (addresses.take(20 * MIB) - third) == 20 * MIB


@given(
    st.lists(st.one_of(st.integers(1, 64), st.integers(-40, -1)), max_size=60), st.sampled_from(["falling", "rising"])
)
def test_address_ranges_never_overlap(steps, order):
    addresses = Addresses(order)
    taken = []
    for step in steps:
        if step > 0:
            taken.append((addresses.take(step * MIB), step * MIB))
        elif taken:
            addresses.give_back(*taken.pop(step % len(taken)))

    ends = 0
    for start, size in sorted(taken):
        assert start >= ends
        ends = start + size


@settings(max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("malloc"), st.integers(1, 60 * MIB), st.integers(0, 2)),
            st.tuples(st.just("malloc"), st.sampled_from([512, 1024, MIB, 4 * MIB, 12 * MIB, 20 * MIB]), st.just(0)),
            st.tuples(st.just("free"), st.integers(0, 99)),
            st.just(("empty",)),
        ),
        max_size=150,
    ),
    st.sampled_from(["", "expandable_segments:True", "max_split_size_mb:32", "garbage_collection_threshold:0.6"]),
    st.sampled_from([None, 300 * MIB]),
)
def test_where_segments_lie_decides_nothing(steps, conf, capacity):
    """So a prediction has one figure, and no range: the driver's order of addresses need not be known."""

    def reserved(order):
        allocator = CachingAllocator(capacity, conf, address_order=order)
        alive, found = [], []
        for what, *numbers in steps:
            try:
                if what == "malloc":
                    alive.append(allocator.malloc(*numbers))
                elif what == "empty":
                    allocator.empty_cache()
                elif alive:
                    allocator.free(alive.pop(numbers[0] % len(alive)))
            except SimulatedOutOfMemory as error:
                found.append(error.requested)
            found.append((allocator.allocated_bytes, allocator.reserved_bytes))
        return found

    assert reserved("falling") == reserved("rising")


# ---- replaying tapes

requests = st.lists(
    st.one_of(st.tuples(st.just("malloc"), st.integers(1, 40 * MIB)), st.tuples(st.just("free"), st.integers(0, 99))),
    min_size=1,
    max_size=50,
)


def tape(program, *, completed=True):
    """A tape of requests as a source without an allocator writes it: no addresses, no segments."""
    events, allocations, alive = [], [], []
    for what, value in program:
        if what == "malloc":
            alive.append(len(allocations))
            allocations.append([len(events), -1, value])
            events.append((Action.ALLOC, alive[-1], value))
        elif what == "empty":
            events.append((Action.SEGMENT_FREE, -1, value))
        elif alive:
            row = alive.pop(value % len(alive))
            allocations[row][1] = len(events)
            events.append((Action.FREE, row, allocations[row][2]))
            if completed:
                events.append((Action.FREE_COMPLETED, row, allocations[row][2]))
    table = np.zeros(len(events), EVENT)
    rows = np.zeros(len(allocations), ALLOCATION)
    for name, column in zip(("action", "allocation", "size"), zip(*events, strict=True), strict=True):
        table[name] = column
    table["time"] = np.arange(len(events))
    for name, column in zip(("born", "died", "requested"), zip(*allocations, strict=True), strict=True):
        rows[name] = column
    rows["category"] = Category.ACTIVATION
    rows["phase"] = Phase.FORWARD
    return Tape(events=table, allocations=rows)


@settings(deadline=None)
@given(requests.filter(lambda program: program[0][0] == "malloc"), st.booleans())
def test_a_replayed_tape_says_what_the_allocator_counted(program, completed):
    source = tape(program, completed=completed)
    allocator = CachingAllocator()

    replay = allocator.replay(source)

    assert replay.fits
    result = replay.tape
    assert result.peak_reserved == replay.peak_reserved == allocator.peak_reserved_bytes
    assert result.peak_allocated == replay.peak_allocated == allocator.peak_allocated_bytes
    assert result.reserved[-1] == allocator.reserved_bytes
    assert result.allocated[-1] == allocator.allocated_bytes
    assert (result.allocations["requested"] == source.allocations["requested"]).all()
    born = result.allocations["born"]
    assert (result.events["action"][born] == Action.ALLOC).all()
    assert (result.events["address"][born] == replay.addresses).all()
    assert (result.events["time"] == np.sort(result.events["time"])).all()


def test_a_tape_that_does_not_fit_ends_where_it_fails():
    source = tape([("malloc", 30 * MIB), ("malloc", 40 * MIB), ("malloc", 50 * MIB), ("free", 0)])

    replay = CachingAllocator(100 * MIB).replay(source)

    assert not replay.fits
    assert replay.failed_event == 2
    assert replay.out_of_memory.requested == 50 * MIB
    assert replay.blocks.tolist() == [30 * MIB, 40 * MIB, 0]
    assert len(replay.tape.allocations) == 2
    assert replay.tape.peak_reserved == 70 * MIB


def test_segments_that_went_back_in_the_source_go_back_in_the_replay_unless_told_otherwise():
    program = [("malloc", 30 * MIB), ("free", 0), ("empty", 30 * MIB), ("malloc", 40 * MIB)]
    source = tape(program)

    with_flush = CachingAllocator().replay(source)
    without = CachingAllocator().replay(source, flushes=False)

    assert (with_flush.peak_reserved, without.peak_reserved) == (40 * MIB, 70 * MIB)


def test_a_block_that_is_still_in_use_after_its_free_is_not_used_again():
    source = tape([("malloc", 30 * MIB), ("free", 0), ("malloc", 30 * MIB)])
    events = source.events[[0, 1, 3, 2]]  # the free is completed after the next allocation
    late = Tape(events=events, allocations=source.allocations.copy())
    late.allocations["born"][1] = 2

    assert CachingAllocator().replay(late).peak_reserved == 60 * MIB
    assert CachingAllocator().replay(source).peak_reserved == 30 * MIB


def test_what_was_alive_before_the_tape_is_alive_in_the_replay():
    source = tape([("malloc", 30 * MIB), ("malloc", 5 * MIB), ("free", 0)])
    later = Tape(events=source.events[1:], allocations=source.allocations.copy())
    later.allocations["born"] -= 1
    later.allocations["died"][later.allocations["died"] > 0] -= 1

    allocator = CachingAllocator()
    replay = allocator.replay(later)

    assert replay.tape.initial_allocated == 30 * MIB == replay.tape.initial_reserved
    assert replay.tape.peak_reserved == replay.peak_reserved == 50 * MIB
    assert replay.peak_allocated == 35 * MIB
    assert allocator.allocated_bytes == 5 * MIB
