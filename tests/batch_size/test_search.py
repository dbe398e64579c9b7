"""Which sizes a search tries, on machines that are made up: no torch, and memory as a formula has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scaled_programs import Op, program, requests, tape_of

from vramkit import CachingAllocator, Trial, UsageError
from vramkit.batch_size.bounds import Bounds
from vramkit.batch_size.search import Found, Search, TrialRun

_T = TypeVar("_T")
MIB = 1 << 20


class Alone:
    """One rank."""

    def smallest(self, size: int) -> int:
        return size

    def any(self, flag: bool) -> bool:
        return flag

    def largest(self, size: int) -> int:
        return size

    def same(self, **numbers: int) -> None:
        pass

    def together(self, attempt: Callable[[], _T]) -> _T:
        return attempt()


class MadeUp:
    """A machine whose steps are a program, served by the simulator."""

    def __init__(self, make: Callable[[int], list[Op]], capacity: int = 8 << 30, runs_too_large: bool = False) -> None:
        self.make, self.capacity, self.runs_too_large = make, capacity, runs_too_large
        self.sizes: list[int] = []

    def replayed(self, size: int, capacity: int | None = None) -> tuple[bool, CachingAllocator]:
        allocator = CachingAllocator(capacity)
        replay = allocator.replay(tape_of(self.make(size)))
        return replay.fits and not allocator.memory_stats()["num_alloc_retries"], allocator

    def truth(self, limit: int) -> int:
        low, high = 0, 1
        while self.replayed(high)[1].peak_reserved_bytes <= limit:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.replayed(middle)[1].peak_reserved_bytes <= limit
            low, high = (middle, high) if fits else (low, middle)
        return low

    def run(self, batch_size: int, *, is_probe: bool) -> TrialRun:
        assert batch_size not in self.sizes, "no size is run twice"
        self.sizes.append(batch_size)
        fits, allocator = self.replayed(batch_size, self.capacity)
        trial = Trial(
            batch_size=batch_size, fits=fits, peak_allocated=allocator.peak_allocated_bytes,
            peak_reserved=allocator.peak_reserved_bytes, is_probe=is_probe, ran_out=not fits,
        )  # fmt: skip
        return TrialRun(trial=trial, requests=requests(self.make(batch_size), batch_size) if fits else None)


def searched(machine: MadeUp, **asked: object) -> tuple[Found, Search]:
    bounds = {"minimum": 1, "maximum": None, "multiple_of": 1, "memory_fraction": 0.8, "verify": True, **asked}
    search = Search(machine, Alone(), Bounds(**bounds))
    return search.run(), search


def beyond_probes(search: Search) -> list[int]:
    return [trial.batch_size for trial in search.trials if not trial.is_probe]


@given(slopes=st.lists(st.integers(64, 40 * MIB), min_size=1, max_size=6))
@settings(max_examples=15, deadline=None)
def test_where_sizes_lie_on_lines_both_answers_are_found_in_three_trials(slopes):
    machine = MadeUp(lambda size: program(slopes, size))

    found, search = searched(machine)

    # What is reserved can fall again, by some segments: then halving finds one border, and the search perhaps another.
    assert found.max_batch_size >= 0.99 * machine.truth(machine.capacity)
    assert found.batch_size >= 0.99 * machine.truth(int(machine.capacity * 0.8))
    assert {found.batch_size, found.max_batch_size} <= {trial.batch_size for trial in search.trials if trial.fits}
    assert len(beyond_probes(search)) <= 3
    assert all(trial.fits for trial in search.trials)


@pytest.mark.parametrize("slope", [64, 4096])
def test_batches_of_millions_take_no_more_trials(slope):
    machine = MadeUp(lambda size: program([slope], size))

    found, search = searched(machine)

    assert found.max_batch_size == machine.truth(machine.capacity) > 10**6
    assert len(beyond_probes(search)) == 2


def test_where_a_run_costs_nothing_the_next_size_is_run_and_not_forecast():
    """Beyond a size, a library takes a smaller workspace: no line through what was run has that."""

    def stepped(size: int) -> list[Op]:
        return [("alloc", 1000, (900 if size < border else 300) * MIB), *program([40 * MIB], size), ("free", 1000)]

    border = 10**6
    border = MadeUp(stepped).truth(8 << 30) + 1
    forecasting, running = MadeUp(stepped), MadeUp(stepped, runs_too_large=True)

    forecast, ran = searched(forecasting)[0], searched(running)[0]

    assert forecast.max_batch_size == border - 1
    assert ran.max_batch_size == running.truth(running.capacity) >= border
    assert ran.is_proven
    assert ran.max_batch_size + 1 in running.sizes


def test_a_program_that_is_another_at_every_size_is_searched_by_what_it_took():
    def erratic(size: int) -> list[Op]:
        return [*program([3 * MIB], size), *[("alloc", 1000 + number, 600) for number in range(size % 7)]]

    machine = MadeUp(erratic)

    found, search = searched(machine)

    assert found.max_batch_size >= 0.99 * machine.truth(machine.capacity)
    assert search.runs[found.max_batch_size].trial.fits
    assert len(search.trials) < 20


def test_memory_that_grows_with_the_square_of_the_batch_is_found_too():
    machine = MadeUp(lambda size: program([size * 1000], size))

    found, search = searched(machine)

    assert found.max_batch_size >= 0.99 * machine.truth(machine.capacity)
    assert search.runs[found.max_batch_size].trial.fits
    assert len(search.trials) < 20


def test_another_kernel_at_large_sizes_is_corrected_by_what_was_measured():
    def with_workspace(size: int) -> list[Op]:
        extra: list[Op] = [("alloc", 1000, 600 * MIB)] if size > 200 else []
        return [*program([9 * MIB], size)[:1], *extra, *program([9 * MIB], size)[1:]]

    machine = MadeUp(with_workspace)

    found, search = searched(machine)

    assert found.max_batch_size == machine.truth(machine.capacity)
    assert len(search.trials) < 20


def test_memory_that_ignores_the_batch_ends_at_the_ceiling_or_at_the_largest_probe():
    with_ceiling, _ = searched(MadeUp(lambda size: program([0], size)), maximum=512)
    without, search = searched(MadeUp(lambda size: program([0], size)))

    assert not with_ceiling.grows
    assert not without.grows
    assert with_ceiling.batch_size == with_ceiling.max_batch_size == 512
    assert without.max_batch_size == max(search.runs)


def test_bounds_and_multiples_are_kept():
    machine = MadeUp(lambda size: program([9 * MIB], size))

    found, _ = searched(machine, minimum=24, maximum=800, multiple_of=8)

    assert all(size % 8 == 0 and 24 <= size <= 800 for size in machine.sizes)
    assert found.max_batch_size == 800
    assert found.batch_size == machine.truth(int(machine.capacity * 0.8)) // 8 * 8


def test_a_ceiling_below_the_probes_is_the_only_size_that_is_run():
    machine = MadeUp(lambda size: program([9 * MIB], size))

    found, _ = searched(machine, maximum=1)

    assert machine.sizes == [1]
    assert found.batch_size == found.max_batch_size == 1


def test_one_row_is_tried_where_two_do_not_fit():
    machine = MadeUp(lambda size: program([5 << 30], size))

    found, _ = searched(machine)

    assert machine.sizes == [2, 1]
    assert found.max_batch_size == found.batch_size == 1


def test_no_size_is_the_answer_where_the_smallest_does_not_fit():
    machine = MadeUp(lambda size: program([5 << 30], size))

    found, _ = searched(machine, minimum=4)

    assert found.batch_size == found.max_batch_size == 0
    assert machine.sizes == [4]


def test_a_fraction_that_the_smallest_size_exceeds_leaves_the_other_answer():
    machine = MadeUp(lambda size: program([3 << 30], size))

    found, _ = searched(machine, memory_fraction=0.2)

    assert found.batch_size == 0
    assert found.max_batch_size == 2


def test_without_verification_only_the_probes_are_run():
    machine = MadeUp(lambda size: program([9 * MIB], size))

    found, search = searched(machine, verify=False)

    assert beyond_probes(search) == []
    assert found.max_batch_size == machine.truth(machine.capacity)
    assert search.expected(found.max_batch_size).kind == "predicted"


def test_the_ranks_end_with_what_the_smallest_of_them_can_do():
    class WithASmallerOne(Alone):
        def smallest(self, size: int) -> int:
            return min(size, 100)

    machine = MadeUp(lambda size: program([9 * MIB], size))
    bounds = Bounds(minimum=1, maximum=None, multiple_of=1, memory_fraction=0.8, verify=True)

    found = Search(machine, WithASmallerOne(), bounds).run()

    assert found.max_batch_size == 100


class ByFormula:
    """A machine without any allocation that could be told: what is reserved at a size is all that is known."""

    def __init__(self, allocated: Callable[[int], int], segment: int = 1, capacity: int = 1 << 30) -> None:
        self.allocated, self.segment, self.capacity = allocated, segment, capacity

    def reserved(self, size: int) -> int:
        return -(-self.allocated(size) // self.segment) * self.segment

    def run(self, batch_size: int, *, is_probe: bool) -> TrialRun:
        size = self.reserved(batch_size)
        trial = Trial(
            batch_size=batch_size, fits=size <= self.capacity, peak_allocated=self.allocated(batch_size),
            peak_reserved=size, is_probe=is_probe, ran_out=size > self.capacity,
        )  # fmt: skip
        return TrialRun(trial=trial)


@given(
    base=st.integers(0, 800 * MIB),
    row=st.integers(1 << 20, 64 << 20),
    segment=st.sampled_from([1, 2 * MIB, 20 * MIB]),
    unit=st.sampled_from([1, 8]),
    shape=st.sampled_from([1, 2]),
)
@settings(deadline=None)
def test_an_answer_is_called_proven_only_where_the_next_size_does_not_do(base, row, segment, unit, shape):
    machine = ByFormula(lambda size: base + row * size**shape, segment)

    found, _ = searched(machine, multiple_of=unit, minimum=unit)

    if found.is_proven:
        assert machine.reserved(found.max_batch_size + unit) > machine.capacity
        assert machine.reserved(found.batch_size + unit) > machine.capacity * 0.8


def test_what_a_single_row_raises_is_left_but_neither_the_callbacks_error_nor_vramkits():
    class Failing(ByFormula):
        error: Exception | None = None

        def run(self, batch_size: int, *, is_probe: bool) -> TrialRun:
            if batch_size == 1 and self.error is not None:
                raise self.error
            return super().run(batch_size, is_probe=is_probe)

    def search(error: Exception | None, on_trial: Callable[[Trial], object] = lambda trial: None) -> Found:
        machine = Failing(lambda size: size << 30)
        machine.error = error
        bounds = Bounds(minimum=1, maximum=None, multiple_of=1, memory_fraction=1.0, verify=True)
        return Search(machine, Alone(), bounds, on_trial).run()

    def fail_at_one(trial: Trial) -> None:
        if trial.batch_size == 1:
            raise KeyError("the callback's")

    of_the_step = UsageError("A step was run")
    of_the_step.__cause__ = ValueError("more than 1 value per channel")
    assert search(None).max_batch_size == 1
    assert search(ValueError("more than 1 value per channel")).max_batch_size == 0
    assert search(of_the_step).max_batch_size == 0
    with pytest.raises(KeyError, match="the callback's"):
        search(None, fail_at_one)
    with pytest.raises(UsageError, match="keeps memory"):
        search(UsageError("The step keeps memory"))


def chunks(size: int) -> list[Op]:
    """A step that works in parts of 64 rows, one after the other."""
    parts = range(-(-size // 64))
    return [op for part in parts for op in (("alloc", part, MIB * min(size, 64)), ("free", part, 0))]


def test_a_step_that_works_in_parts_is_told_from_one_that_grows():
    machine = MadeUp(lambda size: chunks(min(size, 1 << 16)))

    found, search = searched(machine)

    assert not found.grows
    assert found.max_batch_size == max(trial.batch_size for trial in search.trials)
    assert len(search.trials) <= 5


def test_what_grows_below_another_peak_at_small_sizes_is_found_to_grow():
    def hidden(size: int) -> list[Op]:
        erratic = [("alloc", 1000 + number, 600) for number in range(size % 7)]
        return [("alloc", 0, 256 * MIB), ("free", 0, 0), ("alloc", 1, 64 * 1024 * size), *erratic]

    machine = MadeUp(hidden)

    found, _ = searched(machine)

    assert found.grows
    assert found.max_batch_size >= 0.98 * machine.truth(machine.capacity) > 100_000
