"""The simulator does what torch's own allocator does, which runs here on the virtual GPU: every event, every block,
every statistic of random programs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vramkit
from vramkit import virtual_gpu
from vramkit.allocator import AllocatorConf, final_state, follow
from vramkit.tape.events import Action
from vramkit.torch_releases import installed_tie_break

torch = pytest.importorskip("torch")

import real_allocator  # noqa: E402 - it imports torch

pytestmark = pytest.mark.virtual_gpu

KIB, MIB = 1 << 10, 1 << 20
EDGES = [0, 1, 511, 512, 513, MIB - 512, MIB, MIB + 1, 2 * MIB, 9 * MIB, 10 * MIB - 512, 10 * MIB, 10 * MIB + 1]
EDGES += [11 * MIB, 12 * MIB - 512, 20 * MIB, 20 * MIB + 1, 32 * MIB, 64 * MIB, 100 * MIB]

sizes = st.one_of(
    st.sampled_from(EDGES),
    st.integers(1, 8 * KIB),
    st.integers(1, 2 * MIB),
    st.integers(MIB, 24 * MIB),
    st.integers(MIB, 150 * MIB),
)
stream_numbers = st.sampled_from([0, 0, 0, 0, 1, 2])
malloc = st.tuples(st.just("malloc"), sizes, stream_numbers)
free = st.tuples(st.just("free"), st.integers(0, 1000))
use = st.tuples(st.just("use"), st.integers(0, 1000), stream_numbers)
empty = st.just(("empty",))
pooled = st.tuples(st.just("pooled"), sizes, stream_numbers, st.integers(0, 1))
drop = st.tuples(st.just("drop"), st.integers(0, 1))
fraction = st.tuples(st.just("fraction"), st.integers(40, 700))


@st.composite
def confs(draw, later=False):
    """Settings that torch takes at run time; which of those left out are reset is a part of what is compared.

    Not ``max_split_size_mb`` later on: where larger blocks were split before, torch frees a part of a segment then, and
    the driver refuses.
    """
    parts = []
    least = 20
    if "large_segment_size_mb" not in real_allocator.UNKNOWN and draw(st.booleans()):
        # Even numbers: a real driver makes no page of an expandable segment that is not a multiple of 2 MiB.
        least = draw(st.sampled_from([20, 12, 32]))
        parts.append(f"large_segment_size_mb:{least}")
    least = 32 if later else least  # large segments may be of 32 MiB since an earlier change
    least += not real_allocator.MAY_BE_A_SEGMENT
    if draw(st.booleans()):
        parts.append(f"max_non_split_rounding_mb:{draw(st.integers(least, 64))}")
    for switch in ("expandable_segments", "throw_on_cudamalloc_oom"):
        if switch not in real_allocator.UNKNOWN and draw(st.booleans()):
            parts.append(f"{switch}:{draw(st.sampled_from([False, True]))}")
    if not later and draw(st.booleans()):
        parts.append(f"max_split_size_mb:{draw(st.integers(least, 80))}")
    if draw(st.booleans()):
        parts.append(f"garbage_collection_threshold:{draw(st.sampled_from([0.2, 0.5, 0.8, 0.99]))}")
    divisions = st.sampled_from([1, 2, 4, 8, 16])
    if draw(st.booleans()):
        parts.append(f"roundup_power2_divisions:{draw(divisions)}")
    elif draw(st.booleans()):
        listed = [f"{1 << power}:{draw(divisions)}" for power in sorted(draw(st.sets(st.integers(0, 8), min_size=1)))]
        parts.append(f"roundup_power2_divisions:[{','.join([*listed, f'>:{draw(divisions)}'])}]")
    return ",".join(draw(st.permutations(parts)))


@st.composite
def programs(draw, *extra):
    """Mostly allocations and frees; first, often, a limit that makes them fail now and then."""
    step = st.one_of(malloc, malloc, malloc, malloc, free, free, free, empty, *extra)
    steps = draw(st.lists(step, min_size=draw(st.sampled_from([0, 0, 20, 60])), max_size=100))
    return [draw(fraction), *steps] if draw(st.booleans()) else steps


def assert_equal(program, conf):
    torch_did = real_allocator.on_torch(program, conf)
    simulator_did = real_allocator.on_simulator(program, conf, torch_did)

    pools = bool(torch_did.pools)
    simulated = real_allocator.comparable(simulator_did.events, pools=pools)
    assert simulated == real_allocator.comparable(torch_did.events, pools=pools)
    assert simulator_did.failed == torch_did.failed
    same_order = simulator_did.events == torch_did.events
    assert blocks_of(simulator_did, exactly=same_order) == blocks_of(torch_did, exactly=same_order)
    wrong = {
        name: (simulator_did.stats.get(name), value)
        for name, value in torch_did.stats.items()
        if simulator_did.stats.get(name) != value and is_certain(name, exactly=same_order)
    }
    assert not wrong


def is_certain(name, *, exactly):
    """Whether a statistic can be compared: torch fixes one of them when it starts, whatever the settings are later; and
    how many free pieces there were in between depends on the order in which frees were completed."""
    return name != "max_split_size" and (exactly or not name.startswith("inactive_split") or name.endswith(".current"))


def blocks_of(outcome, *, exactly):
    """The segments; where frees were completed in another order, without what a free block's last owner asked for."""
    if exactly:
        return outcome.segments
    return [
        (
            segment.address,
            segment.size,
            segment.stream,
            [(block.address, block.size, block.state) for block in segment.blocks],
        )
        for segment in outcome.segments
    ]


relaxed = settings(deadline=None, max_examples=200)


@relaxed
@given(programs())
def test_with_default_settings(program):
    assert_equal(program, real_allocator.DEFAULTS)


@relaxed
@given(programs(), confs())
def test_with_any_settings(program, conf):
    assert_equal(program, conf)


@relaxed
@given(programs(use))
def test_with_blocks_that_other_streams_use(program):
    assert_equal(program, real_allocator.DEFAULTS)


@relaxed
@given(programs(st.tuples(st.just("conf"), confs(later=True)), fraction, use), confs())
def test_with_settings_that_change_on_the_way(program, conf):
    assert_equal(program, conf)


@relaxed
@given(programs(use), confs())
def test_with_expandable_segments(program, conf):
    assert_equal(program, f"{conf},expandable_segments:True" if conf else "expandable_segments:True")


@relaxed
@given(programs(pooled, pooled, use), confs())
def test_with_private_pools(program, conf):
    assert_equal(program, conf)


@relaxed
@given(programs(pooled, pooled, drop, use), confs())
def test_with_private_pools_that_end(program, conf):
    """Not with expandable segments, where the end of a pool makes torch 2.14.1 fail its own assertions or crash."""
    assert_equal(program, f"{conf},expandable_segments:False" if conf else "")


def in_a_pool(size, pool):
    with torch.cuda.use_mem_pool(pool):
        return torch.empty(size, dtype=torch.uint8, device="cuda")


def mixed(pool):
    """Memory of a private pool and of none, so that one would serve the other if they were one."""
    loose = torch.empty(40 * MIB, dtype=torch.uint8, device="cuda")
    kept = in_a_pool(30 * MIB, pool)
    del loose
    in_a_pool(40 * MIB, pool)
    last = torch.empty(30 * MIB, dtype=torch.uint8, device="cuda")
    return kept, last


NAMES_POOLS = installed_tie_break() == "age"
"""Whether torch's history says which private pool served; up to 2.11 only what is left of pools is known."""


@pytest.mark.parametrize("conf", ["", "expandable_segments:True"])
def test_a_recorded_private_pool_serves_in_a_replay_too(conf, tmp_path):
    real_allocator.clear()
    real_allocator.configure(f"{real_allocator.DEFAULTS},{conf}" if conf else real_allocator.DEFAULTS)
    pool = torch.cuda.MemPool()
    before = in_a_pool(50 * MIB, pool)
    with vramkit.profile() as prof:
        kept = [before, *mixed(pool)]
        del before, kept[0]
        if NAMES_POOLS and not conf:  # see test_with_private_pools_that_end
            del pool
        other = torch.cuda.MemPool()
        kept += mixed(other)
    kept.clear()
    prof.result.save(tmp_path / "profile.npz")
    profile = vramkit.load(tmp_path / "profile.npz")

    replay = vramkit.CachingAllocator(conf=conf).replay(profile.tape)

    assert (replay.peak_allocated, replay.peak_reserved) == (profile.peak_allocated, profile.peak_reserved)
    assert replay.tape.reserved[-1] == profile.tape.reserved[-1]
    again = vramkit.CachingAllocator(conf=conf).replay(replay.tape)
    assert again.peak_reserved == profile.peak_reserved
    assert again.tape.reserved[-1] == profile.tape.reserved[-1]


@pytest.mark.skipif(not NAMES_POOLS, reason="this torch's history does not say which private pool served")
def test_a_private_pool_from_before_a_history_is_known_again(tmp_path):
    real_allocator.clear()
    first, second = torch.cuda.MemPool(), torch.cuda.MemPool()
    kept = [in_a_pool(30 * MIB, first), in_a_pool(40 * MIB, second)]
    torch.cuda.memory._record_memory_history(context=None)
    del kept[1], second  # its segment goes back, and only the history knows that it was there
    kept += mixed(first)
    torch.cuda.memory._dump_snapshot(str(tmp_path / "snapshot.pickle"))
    torch.cuda.memory._record_memory_history(None)
    torch.cuda.reset_peak_memory_stats()
    profile = vramkit.open_snapshot(tmp_path / "snapshot.pickle")

    replay = vramkit.CachingAllocator().replay(profile.tape)

    assert len({tuple(pool) for pool in profile.tape.segments["pool"].tolist()} - {(0, 0)}) == 2
    assert replay.peak_reserved == profile.peak_reserved
    assert replay.tape.reserved[-1] == torch.cuda.memory_reserved()


def test_the_driver_runs_out_of_memory():
    """Not a limit of the allocator's own: the device is full, also when cached segments went back."""
    gpu = virtual_gpu.current()
    steps = [("malloc", 200 * MIB, 0), ("malloc", 150 * MIB, 0), ("free", 0), ("malloc", 300 * MIB, 0)]
    steps += [("malloc", 5 * MIB, 0), ("malloc", 200 * MIB, 1), ("malloc", 100 * MIB, 0), ("malloc", 10 * KIB, 2)]
    real_allocator.clear()
    free, total = torch.cuda.mem_get_info()
    gpu.set_memory(total - free + 520 * MIB)
    try:
        for conf in (real_allocator.DEFAULTS, "expandable_segments:True", "max_split_size_mb:64"):
            torch_did = real_allocator.on_torch(steps, conf)

            assert torch_did.failed, "the test is about failures"
            assert_equal(steps, conf)
    finally:
        gpu.set_memory(None)


def test_a_limit_may_be_reached_to_the_byte():
    """Also where the fraction times the device's memory is a little less than the limit that it was made from."""
    total = torch.cuda.get_device_properties("cuda").total_memory
    limits = range(40, 400, 2)
    assert any(limit * MIB / total * total < limit * MIB for limit in limits), "the test is about these"

    for limit in limits:
        assert_equal([("fraction", limit), ("malloc", limit * MIB, 0), ("malloc", 1, 0)], real_allocator.DEFAULTS)


def _tied():
    """Two whole segments of one size, freed in an order that tells age from address."""
    return [
        ("malloc", 200 * MIB, 0),
        ("malloc", 30 * MIB, 0),
        ("free", 0),
        ("empty",),
        *[("malloc", 30 * MIB, 0)] * 3,
        *[("free", 0)] * 4,
        *[("malloc", 30 * MIB, 0)] * 4,
    ]


def test_a_simulator_with_another_tie_break_is_caught():
    """This comparison can fail: a simulator of another torch's order of equal blocks does not pass it."""
    program = _tied()
    torch_did = real_allocator.on_torch(program, real_allocator.DEFAULTS)

    other = {"age": "address", "address": "age"}[installed_tie_break()]
    wrong = real_allocator.on_simulator(program, real_allocator.DEFAULTS, torch_did, tie_break=other)

    assert wrong.events != torch_did.events
    assert_equal(program, real_allocator.DEFAULTS)


def test_following_torchs_own_trace_gives_its_blocks():
    program = [("malloc", size, number % 3) for number, size in enumerate(EDGES * 2)]
    program += [("free", number * 7) for number in range(20)]
    program += [("malloc", size, 0) for size in EDGES]
    for conf in (real_allocator.DEFAULTS, "max_split_size_mb:30", "expandable_segments:True"):
        torch_did = real_allocator.on_torch(program, conf)
        columns = tuple(zip(*torch_did.events, strict=True))

        blocks = follow([], *columns, AllocatorConf.parse(conf))
        after = final_state([], *columns, AllocatorConf.parse(conf))

        assert blocks[[action == Action.ALLOC for action in columns[0]]].min() >= 512
        found = {block.address: block for segment in after for block in segment.blocks if block.state != "inactive"}
        real = {
            block.address: block
            for segment in torch_did.segments
            for block in segment.blocks
            if block.state != "inactive"
        }
        assert found == real
        assert sum(blocks) == torch_did.stats["allocated_bytes.all.allocated"]
