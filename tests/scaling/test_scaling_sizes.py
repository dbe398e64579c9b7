"""Many batch sizes from few runs: rows, and the largest that fits. No torch: sessions are programs of a few lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scaled_programs import Op, program, requests, tape_of

import vramkit
from vramkit import Profile, gpus
from vramkit.allocator import DeviceCachingAllocator
from vramkit.engines import Run
from vramkit.scaling.largest import MAX_PREDICTED_BATCH, Largest
from vramkit.scaling.lines import Lines
from vramkit.scaling.replays import replayed
from vramkit.scaling.rows import Rows

MIB = 1 << 20
T4 = gpus.find("t4")


class Programs:
    """A session that serves a program's requests at any batch size, and remembers which it was asked for."""

    engine = "virtual"

    def __init__(self, make: Callable[[int], Iterable[Op]]) -> None:
        self.make = make
        self.sizes: list[int] = []

    def run(self, gpu: vramkit.GPU, batch_size: int, *, unlimited: bool = False, detailed: bool = True) -> Run:
        self.sizes.append(batch_size)
        return self.served(gpu, batch_size, unlimited=unlimited, detailed=detailed)

    def served(self, gpu: vramkit.GPU, batch_size: int, *, unlimited: bool = False, detailed: bool = True) -> Run:
        tape = tape_of(self.make(batch_size))
        allocator = DeviceCachingAllocator(None if unlimited else gpu.memory, context=0 if unlimited else gpu.context)
        peaks = replayed(tape, allocator)
        return Run(
            ran_out=not peaks.fits,
            peak_allocated=peaks.allocated,
            peak_reserved=peaks.reserved,
            profile=Profile(tape=tape) if detailed else None,
        )


def check(session: Programs, sizes: list[int]) -> dict[int, vramkit.BatchSizeRow]:
    """Every row is what a run of that size alone gives."""
    rows = Rows(session, T4)

    rows.fill(sizes)

    assert {*rows.rows} == {*sizes}
    for size, row in rows.rows.items():
        run = session.served(T4, size)
        assert row.fits is not run.ran_out
        if run.ran_out:
            run = session.served(T4, size, unlimited=True)
        assert (row.peak_allocated, row.peak_reserved) == (run.peak_allocated, run.peak_reserved)
        assert row.was_run is (size in session.sizes)
        assert row.used == row.peak_reserved + T4.context
        assert row.capacity == T4.memory
    return rows.rows


# -- rows --------------------------------------------------------------------------------------------------------------


@given(
    slopes=st.lists(st.integers(0, 50_000_000), min_size=1, max_size=8),
    sizes=st.lists(st.integers(2, 3000), min_size=4, max_size=12, unique=True),
)
@settings(max_examples=60, deadline=None)
def test_sizes_on_lines_are_what_runs_of_their_own_give(slopes, sizes):
    check(Programs(lambda size: program(slopes, size)), sizes)


def test_of_sizes_on_lines_three_are_run() -> None:
    session = Programs(lambda size: program([100_000, 7_000_000], size))

    rows = check(session, [*range(8, 88, 8)])

    assert [size for size in rows if rows[size].was_run] == [8, 80, 24]


def test_sizes_that_do_not_fit_are_said_not_to() -> None:
    session = Programs(lambda size: program([100 * MIB, 300 * MIB], size))

    rows = check(session, [2, 5, 9, 20, 33, 40, 64])

    assert [size for size in sorted(rows) if rows[size].fits] == [2, 5, 9, 20, 33]


@given(
    threshold=st.integers(2, 70),
    sizes=st.lists(st.integers(1, 64), min_size=4, max_size=12, unique=True),
    slope=st.integers(1, 3_000_000),
)
@settings(max_examples=60, deadline=None)
def test_where_another_kernel_is_chosen_from_some_size_on_rows_are_still_right(threshold, sizes, slope):
    def make(size: int) -> list[Op]:
        extra: list[Op] = [("alloc", 50, slope * size), ("alloc", 51, 700), ("free", 50)]
        return [*(extra if size >= threshold else []), *program([slope, 3 * slope], size)]

    check(Programs(make), sizes)


@given(
    cap=st.integers(1, 200 * MIB),
    sizes=st.lists(st.integers(2, 64), min_size=4, max_size=12, unique=True),
    slope=st.integers(1, 3_000_000),
)
@settings(max_examples=60, deadline=None)
def test_where_a_workspace_stops_growing_rows_are_still_right(cap, sizes, slope):
    def make(size: int) -> list[Op]:
        workspace: list[Op] = [("alloc", 50, min(cap, slope * size)), ("free", 50)]
        ops = program([slope, 3 * slope], size)
        return [*ops[:2], *workspace, *ops[2:]]

    check(Programs(make), sizes)


def test_what_is_rounded_up_to_a_power_of_two_is_not_taken_for_a_line() -> None:
    session = Programs(lambda size: program([-(-size // 32) * 32 * MIB // size], size))

    check(session, [32, 64, 96, 128, 160, 100, 77])

    assert {77, 100} <= {*session.sizes}


def test_a_program_that_the_simulator_serves_otherwise_is_run_at_every_size() -> None:
    class Other(Programs):
        def served(self, gpu: vramkit.GPU, batch_size: int, *, unlimited: bool = False, detailed: bool = True) -> Run:
            run = super().served(gpu, batch_size, unlimited=unlimited, detailed=detailed)
            return Run(
                ran_out=False,
                peak_allocated=run.peak_allocated,
                peak_reserved=run.peak_reserved + 2 * MIB,
                profile=run.profile,
            )

    rows = check(Other(lambda size: program([MIB], size)), [2, 3, 5, 9, 17])

    assert all(row.was_run for row in rows.values())


def test_lines_that_a_third_size_refutes_are_not_drawn() -> None:
    def bent(size: int) -> list[Op]:
        return [("alloc", 1, 100 * size + (size == 7))]

    one, other = requests(bent(2), 2), requests(bent(9), 9)

    assert Lines.through(one, other, requests(bent(5), 5)) is not None
    assert Lines.through(one, other, requests(bent(7), 7)) is None


# -- the largest that fits ---------------------------------------------------------------------------------------------


class Needs:
    """A session whose program needs so much memory, in segments, as a function of the batch size; without a tape."""

    engine = "virtual"

    def __init__(self, base: int, per_row: int, segment: int) -> None:
        self.base, self.per_row, self.segment = base, per_row, segment
        self.sizes: list[int] = []

    def reserved(self, size: int) -> int:
        return -(-(self.base + self.per_row * size) // self.segment) * self.segment

    def run(self, gpu: vramkit.GPU, batch_size: int, *, unlimited: bool = False, detailed: bool = True) -> Run:
        self.sizes.append(batch_size)
        needed = self.reserved(batch_size)
        return Run(ran_out=needed > gpu.memory - gpu.context, peak_allocated=needed, peak_reserved=needed, profile=None)


@given(
    base=st.integers(0, 15_000 * MIB),
    per_row=st.integers(0, 20_000 * MIB),
    segment=st.sampled_from([1, 512, 2 * MIB, 20 * MIB]),
    start=st.integers(1, 100_000),
)
def test_the_search_finds_the_largest_batch_and_has_tried_the_next(
    base: int, per_row: int, segment: int, start: int
) -> None:
    session = Needs(base, per_row, segment)

    try:
        found = Largest(session, T4).run(start)
    except vramkit.DoesNotFit:
        found = 0

    room = T4.memory - T4.context
    assert found == MAX_PREDICTED_BATCH or session.reserved(found + 1) > room
    assert found == MAX_PREDICTED_BATCH or found + 1 in session.sizes
    assert not found or (session.reserved(found) <= room and found in session.sizes)
    assert len(session.sizes) <= 60


def test_where_memory_is_a_line_few_runs_find_the_end() -> None:
    session = Needs(500 * MIB, 3 * MIB, 1)

    Largest(session, T4).run(16)

    assert len(session.sizes) <= 8


@given(slopes=st.lists(st.integers(20_000, 50_000_000), min_size=1, max_size=8), start=st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_where_requests_lie_on_lines_few_runs_find_the_end(slopes, start):
    session = Programs(lambda size: program(slopes, size))

    found = Largest(session, T4).run(start)

    assert not session.served(T4, found).ran_out
    assert session.served(T4, found + 1).ran_out
    assert {found, found + 1} <= {*session.sizes}
    assert len(session.sizes) <= 6


def test_from_a_size_that_is_too_large_a_second_one_that_fits_tells_where_the_end_is() -> None:
    session = Programs(lambda size: program([100 * MIB, 500 * MIB], size))

    found = Largest(session, T4).run(64)

    assert session.sizes == [64, 16, 8, found, found + 1]


def test_what_is_known_is_not_run_again() -> None:
    session = Programs(lambda size: program([MIB, 3 * MIB], size))
    search = Largest(session, T4)
    search.know(16, session.served(T4, 16).profile.tape)

    found = search.run(16)

    assert 16 not in session.sizes
    assert session.served(T4, found + 1).ran_out


def test_a_row_that_does_not_fit_is_an_error() -> None:
    session = Programs(lambda size: program([20_000 * MIB], size))

    with pytest.raises(vramkit.DoesNotFit, match="One row runs out of memory"):
        Largest(session, T4).run(4)
