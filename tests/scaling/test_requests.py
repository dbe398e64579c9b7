"""Requests at any batch size, from those at a few. No torch: the tapes are made here, by a program of a few lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scaled_programs import Op, program, requests, tape_of

from vramkit import Action, CachingAllocator
from vramkit.scaling.replays import largest
from vramkit.scaling.requests import Families, Requests, requests_of, two_for


def families(make: Callable[[int], Iterable[Op]], *sizes: int) -> Families:
    made = Families()
    for size in sizes:
        made.add(requests(make(size), size))
    return made


@given(slopes=st.lists(st.integers(0, 10**9), min_size=1, max_size=8), size=st.integers(1, 10**8))
@settings(max_examples=60, deadline=None)
def test_the_tape_at_any_size_is_that_of_a_run_there(slopes, size):
    known = families(lambda n: program(slopes, n), 2, 3)

    predicted = known.nearest(size).at(size)

    expected = tape_of(program(slopes, size))
    assert predicted.allocations["requested"].tolist() == expected.allocations["requested"].tolist()
    assert predicted.events["action"].tolist() == expected.events["action"].tolist()


def test_a_replay_of_a_predicted_tape_reserves_what_the_program_reserves():
    known = families(lambda n: program([70_000, 300_000], n), 2, 3, 9)

    predicted = CachingAllocator().replay(known.nearest(500).at(500))

    assert predicted.peak_reserved == CachingAllocator().replay(tape_of(program([70_000, 300_000], 500))).peak_reserved


def test_programs_with_another_sequence_of_events_are_told_apart():
    shorter = requests(program([100], 2), 2)
    longer = requests(program([100, 100], 3), 3)
    known = Families()

    assert known.add(shorter) is not known.add(longer)
    assert known.nearest(10) is None


def test_a_workspace_that_only_some_sizes_have_does_not_tell_programs_apart():
    def with_workspace(size: int) -> list[Op]:
        middle: list[Op] = [("alloc", 50, 512 * size), ("alloc", 51, 8), ("free", 51), ("free", 50)]
        return [*program([100], size)[:1], *(middle if size % 2 else []), *program([100], size)[1:]]

    known = families(with_workspace, 2, 3)

    assert len(known.nearest(4).members) == 2
    assert known.nearest(3).at(3).allocations["requested"].tolist() == [1300, 1536, 8, 5000]
    assert known.nearest(6).at(6).allocations["requested"].tolist() == [1600, 3072, 16, 5000]


def test_the_order_of_what_was_there_before_does_not_tell_programs_apart():
    def steps(first: int) -> list[Op]:
        return [("alloc", 1, 100), ("free", first), ("alloc", 2, 100)]

    one, other = requests(steps(-1), 2, before=(512, 1024)), requests(steps(-2), 3, before=(1024, 512))

    assert one.pattern == other.pattern


def test_runs_whose_private_pools_differ_only_in_their_ids_align():
    def in_pools(size: int, *pools: tuple[int, int]) -> Requests:
        tape = tape_of(("alloc", number, 512) for number in range(len(pools)))
        tape.events["pool"] = pools
        return requests_of(size, tape)

    one, other = in_pools(2, (0, 7), (0, 0), (0, 8), (0, 7)), in_pools(3, (0, 10), (0, 0), (0, 9), (0, 10))

    assert one.pattern == other.pattern
    assert one.asks_as(other.tape)
    for pools in ([(0, 7), (0, 8), (0, 8), (0, 7)], [(0, 7), (0, 0), (0, 8), (0, 8)], [(0, 0), (0, 7), (0, 8), (0, 0)]):
        unlike = in_pools(2, *pools)
        assert unlike.pattern != one.pattern
        assert not unlike.asks_as(one.tape)


def test_a_call_of_empty_cache_is_kept_and_what_came_and_went_of_segments_is_not():
    ops: list[Op] = [("alloc", 1, 100), ("free", 1), ("flush", 0), ("alloc", 2, 100)]

    with_call = requests_of(2, tape_of(ops))
    without = requests_of(2, tape_of(ops), flushes=False)

    assert with_call.tape.events["action"].tolist().count(Action.SEGMENT_FREE) == 1
    assert Action.SEGMENT_FREE not in without.tape.events["action"]


def test_what_comes_after_the_last_step_is_left_out():
    tape = tape_of([("alloc", 1, 100), ("alloc", 2, 100), ("free", 1)])

    cut = requests_of(2, tape, end=2).tape

    assert len(cut.events) == 2
    assert cut.allocations["died"].tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("size", "known", "expected"),
    [
        (100, (2, 3, 90), (90, 3)),
        (100, (99, 98, 40), (99, 98)),
        (400, (317, 315, 100), (317, 100)),
        (5, (2, 3), (3, 2)),
    ],
)
def test_a_line_goes_through_the_nearest_size_and_one_not_too_near_to_that(size, known, expected):
    assert two_for(size, known) == expected


@given(border=st.integers(0, 10**7), slope=st.integers(1, 10**6), base=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_the_largest_number_within_a_limit_is_found_in_few_calls(border, slope, base):
    calls = []

    def reserved(units: int) -> int:
        calls.append(units)
        return (base + slope * units) // (2 << 20) * (2 << 20)  # segments are whole

    found = largest(reserved, limit := reserved(border), 0, 1 << 30)

    assert reserved(found) <= limit < reserved(found + 1)
    assert len(calls) < 60
