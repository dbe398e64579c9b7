"""``vramkit.fit_batch_size``: which sizes it calls, what it makes of errors and signatures, that it leaves nothing."""

from __future__ import annotations

import gc
import inspect
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from predicted_programs import class_loss
from subprocesses import run_on

import vramkit
from vramkit.batch_size.device_memory import allowed, available
from vramkit.batch_size.next_size import Descent


def out_of_memory(*_: object) -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError("CUDA out of memory.")


def up_to(fits: int, calls: list[int]) -> Callable[[int], int]:
    """A function that runs out of memory above a size, and returns the size at which it does not."""

    def train(batch_size: int) -> int:
        calls.append(batch_size)
        if batch_size > fits:
            raise out_of_memory()
        return batch_size

    return train


# -- which sizes -------------------------------------------------------------------------------------------------------


def test_a_size_that_fits_is_called_once() -> None:
    calls: list[int] = []

    assert vramkit.fit_batch_size(starting_batch_size=64)(up_to(64, calls))() == 64
    assert calls == [64]


def follow(
    descent: Descent, fits: Callable[[int], bool], reserved: Callable[[int], int] | None = None, capacity: int = 0
) -> list[tuple[int, bool, bool]]:
    """Every size that is called until one ends or none is left: size, whether it fitted, whether it was stopped."""
    figures = {0: capacity} if reserved else {}
    called, size, stops = [], descent.first, False
    while True:
        called.append((size, fits(size), stops))
        if not fits(size):
            descent.ran_out(size, {}, stopped=stops)
        elif stops and reserved:
            descent.fitted(size, {0: reserved(size)})
        else:
            return called
        if descent.is_over:
            return called
        size, stops = descent.next(stoppable=bool(reserved), capacity=figures, base={0: 0})


@given(start=st.integers(8, 5000), fits=st.integers(8, 5000), multiple=st.sampled_from([1, 2, 8]))
def test_without_figures_it_goes_down_to_a_size_not_far_below_what_fits(start: int, fits: int, multiple: int) -> None:
    sizes = [size for size, *_ in follow(Descent(start, 1, multiple), lambda size: size <= fits)]

    assert sizes[-1] <= fits
    assert sizes[-1] >= min(start, int(0.9 * fits)) - multiple
    assert sizes == sorted(set(sizes), reverse=True)
    assert all(size % multiple == 0 for size in sizes)


@example(start=21_504, multiple=1, minimum=1, fixed=1_040_732_138, row=268_435_414, segment=1)
@given(
    start=st.integers(1, 100_000),
    multiple=st.sampled_from([1, 1, 8]),
    minimum=st.integers(1, 4),
    fixed=st.integers(0, 1 << 30),
    row=st.integers(1 << 16, 1 << 28),
    segment=st.sampled_from([1, 2 << 20, 20 << 20]),
)
def test_with_figures_few_calls_lead_close_to_what_fits(
    start: int, multiple: int, minimum: int, fixed: int, row: int, segment: int
) -> None:
    capacity, start = 8 << 30, max(start, minimum, multiple)
    truth = min(start, (capacity // segment * segment - fixed) // row) // multiple * multiple

    def reserved(size: int) -> int:
        return -(-(fixed + size * row) // segment) * segment

    called = follow(Descent(start, minimum, multiple), lambda size: size <= truth, reserved, capacity)

    failures = [size for size, fitted, _ in called if not fitted]
    assert min(size for size, *_ in called) >= minimum
    assert all(size % multiple == 0 for size, *_ in called)
    assert len(set(called)) == len(called)
    assert len(set(failures)) == len(failures)
    if truth < minimum:
        assert not called[-1][1]
        return
    assert called[-1][1]
    assert called[-1][0] >= 0.97 * truth - multiple
    # The first one, then a part of it and so on until one fits, and one that the line was wrong about.
    assert len(failures) <= 2 + (start // truth).bit_length() / 5
    assert len(called) - len(failures) <= 4


def test_every_size_being_too_large_is_said_with_the_last_failure_as_the_cause() -> None:
    calls: list[int] = []

    with pytest.raises(vramkit.DoesNotFit, match=r"up_to.*train.*batch_size=3, the smallest") as caught:
        vramkit.fit_batch_size(starting_batch_size=5, min_batch_size=3)(up_to(2, calls))()

    assert calls == [5, 4, 3]
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_zero_is_never_called() -> None:
    calls: list[int] = []

    with pytest.raises(vramkit.DoesNotFit):
        vramkit.fit_batch_size(starting_batch_size=3)(up_to(0, calls))()

    assert calls == [3, 2, 1]


def test_each_call_of_the_function_begins_anew() -> None:
    calls: list[int] = []
    train = vramkit.fit_batch_size(starting_batch_size=8)(up_to(7, calls))

    assert (train(), train()) == (7, 7)
    assert calls == [8, 7, 8, 7]


# -- which errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("some other words"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you ..."
        ),
    ],
)
def test_running_out_is_known_by_its_type_or_a_librarys_status(error: Exception) -> None:
    failing = [error]

    def train(batch_size: int) -> int:
        if failing:
            raise failing.pop()
        return batch_size

    assert vramkit.fit_batch_size(starting_batch_size=10)(train)() == 9


@pytest.mark.parametrize("error", [ValueError("batch"), RuntimeError("shapes don't match"), KeyboardInterrupt()])
def test_other_errors_pass_at_once(error: BaseException) -> None:
    calls = []

    def train(batch_size: int) -> None:
        calls.append(batch_size)
        raise error

    with pytest.raises(type(error)):
        vramkit.fit_batch_size(train)()
    assert calls == [128]


def test_what_a_failed_call_held_is_gone_before_the_next() -> None:
    class Held:
        pass

    held: list[weakref.ref[Held]] = []
    alive: list[bool] = []

    def train(batch_size: int) -> None:
        alive.extend(each() is not None for each in held)
        thing = Held()
        thing.itself = thing  # type: ignore[attr-defined] # a cycle, which only the collector frees
        held.append(weakref.ref(thing))
        if batch_size > 2:
            raise out_of_memory()

    vramkit.fit_batch_size(starting_batch_size=4)(train)()

    assert alive == [False, False, False]


# -- which functions ---------------------------------------------------------------------------------------------------


def test_arguments_go_through_and_the_rest_of_the_signature_stays() -> None:
    @vramkit.fit_batch_size(starting_batch_size=16)
    def train(batch_size: int, epochs: int, *, rate: float = 0.1) -> tuple[int, int, float]:
        """Train."""
        return batch_size, epochs, rate

    assert train(3, rate=0.5) == (16, 3, 0.5)
    assert (train.__name__, train.__doc__) == ("train", "Train.")
    assert list(inspect.signature(train).parameters) == ["epochs", "rate"]


def test_methods_work() -> None:
    class Trainer:
        largest = 12

        @vramkit.fit_batch_size(starting_batch_size=16)
        def train(self, batch_size: int, times: int = 1) -> int:
            if batch_size > self.largest:
                raise out_of_memory()
            return batch_size * times

        @staticmethod
        @vramkit.fit_batch_size
        def alone(batch_size: int) -> int:
            return batch_size

    assert Trainer().train() == 12
    assert Trainer().train(times=2) == 24
    assert Trainer.alone() == 128


@pytest.mark.parametrize("arguments", [((32,), {}), ((), {"batch_size": 32}), ((32,), {"epochs": 1})])
def test_a_batch_size_that_is_passed_is_refused(arguments: tuple[tuple[int, ...], dict[str, int]]) -> None:
    @vramkit.fit_batch_size
    def train(batch_size: int, epochs: int = 1) -> None:
        raise AssertionError

    args, kwargs = arguments
    if args and not kwargs:
        args = (*args, 1)
    with pytest.raises(vramkit.UsageError, match="Leave it out of the call"):
        train(*args, **kwargs)


@pytest.mark.parametrize("compiles", [False, True])
def test_what_is_called_is_not_compiled_for_a_second_size_in_silence(compiles: bool) -> None:
    torch._dynamo.reset()
    double = torch.compile(lambda x: x * 2, backend="eager") if compiles else torch.neg

    def train(batch_size: int) -> None:
        double(torch.zeros(batch_size))
        if batch_size > 8:
            raise out_of_memory()

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        vramkit.fit_batch_size(starting_batch_size=16)(train)()

    said = [each for each in told if "for a second batch size" in str(each.message)]
    assert len(said) == compiles
    assert all(each.filename == __file__ for each in said)


def test_other_wrong_arguments_are_pythons_own_error() -> None:
    @vramkit.fit_batch_size
    def train(batch_size: int, epochs: int) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match="missing a required argument: 'epochs'"):
        train()


def generates(batch_size: int) -> object:
    yield batch_size


async def awaits(batch_size: int) -> None:
    pass


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda epochs, batch_size: None, "first argument is not batch_size.*Write def"),
        (lambda: None, "first argument is not batch_size"),
        (lambda *, batch_size: None, "first argument is not batch_size"),
        (generates, "generator or a coroutine"),
        (awaits, "generator or a coroutine"),
        (staticmethod(generates), "Put it below @staticmethod"),
        (64, "starting_batch_size=..."),
    ],
)
def test_functions_that_cannot_be_called_with_a_size_are_refused(function: Callable[..., object], text: str) -> None:
    with pytest.raises(vramkit.UsageError, match=text):
        vramkit.fit_batch_size(function)


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"starting_batch_size": 0}, "starting_batch_size=0. It has to be at least 1"),
        ({"starting_batch_size": 2.5}, "starting_batch_size has to be a whole number"),
        ({"min_batch_size": -1}, "min_batch_size=-1"),
        ({"multiple_of": 0}, "multiple_of=0"),
        ({"starting_batch_size": 10, "multiple_of": 16}, "No size is at most the first"),
        ({"starting_batch_size": 10, "min_batch_size": 11}, "No size is at most the first"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes: dict[str, int], text: str) -> None:
    with pytest.raises(vramkit.UsageError, match=text):
        vramkit.fit_batch_size(**sizes)


def test_a_size_may_be_an_integer_of_numpy() -> None:
    calls: list[int] = []
    size: Any = np.int64(64)

    assert vramkit.fit_batch_size(starting_batch_size=size)(up_to(64, calls))() == 64
    assert type(calls[0]) is int


# -- real ones ---------------------------------------------------------------------------------------------------------

_TRAIN = """
import torch, vramkit
from predicted_programs import small_gpt, class_loss

def train(batch_size):
    model = small_gpt().cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(4):
        x = torch.zeros(batch_size, 256, dtype=torch.long, device="cuda")
        class_loss(model(x), (x, x)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return batch_size
"""


@pytest.mark.virtual_gpu
def test_a_memory_fraction_that_was_computed_from_a_limit_stands_for_that_limit() -> None:
    total = torch.cuda.get_device_properties("cuda").total_memory
    try:
        for limit in range(40 << 20, 400 << 20, 2 << 20):
            torch.cuda.set_per_process_memory_fraction(limit / total)

            assert allowed(0) == available(0, torch.cuda.memory_reserved()) == limit
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert allowed(0) is None


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("start", [128, 8192])
def test_a_function_that_trains_ends_within_a_few_calls_close_to_the_largest_size(start: int) -> None:
    result = run_on(
        "4 GiB",
        _TRAIN
        + f"""
trials = []
found = vramkit.fit_batch_size(starting_batch_size={start}, on_trial=trials.append)(train)()
largest, before = found, torch.cuda.memory_stats()["num_alloc_retries"]
while True:
    torch.cuda.empty_cache()
    train(largest + 1)
    if torch.cuda.memory_stats()["num_alloc_retries"] > before:
        break
    largest += 1
result = found, largest, [(t.batch_size, t.fits, t.is_probe, t.ran_out) for t in trials]
""",
    )

    found, largest, trials = result
    assert 0.97 * largest <= found <= largest
    assert sum(ran_out for *_, ran_out in trials) <= (1 if start == 128 else 3)
    assert len(trials) <= (4 if start == 128 else 6)
    assert [trial[:3] for trial in trials][-1] == [found, True, False]


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("ends_by", ["a single step", "catching the stop"])
def test_a_call_that_ends_where_it_was_only_to_be_measured_is_not_the_answer(ends_by: str) -> None:
    found, trials = run_on(
        "4 GiB",
        f"""
import torch, vramkit
steps = {1 if ends_by == "a single step" else 4}
trials = []
@vramkit.fit_batch_size(starting_batch_size=65536, on_trial=trials.append)
def train(batch_size):
    model = torch.nn.Sequential(torch.nn.Linear(784, 16384), torch.nn.ReLU(), torch.nn.Linear(16384, 10)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.zeros(batch_size, 784, device="cuda")
    try:
        for _ in range(steps):
            model(x).sum().backward()
            optimizer.step()
    except torch.OutOfMemoryError:
        raise
    except BaseException:
        pass
    return batch_size
result = train(), [(t.batch_size, t.fits, t.is_probe) for t in trials]
""",
    )

    assert tuple(trials[-1]) == (found, True, False)
    assert any(is_probe and fits for _, fits, is_probe in trials)
    assert found > 2 * min(size for size, *_ in trials)


@pytest.mark.virtual_gpu
def test_a_stopped_call_leaves_no_memory_and_no_hook() -> None:
    result = run_on(
        "4 GiB",
        _TRAIN
        + """
from leftovers import left_behind
warm = train(1)
torch.cuda.empty_cache()
before = torch.cuda.memory_allocated()
held = []
def watched(batch_size):
    held.append(torch.cuda.memory_allocated() - before)
    return train(batch_size)
watched.__name__ = "watched"
vramkit.fit_batch_size(starting_batch_size=512)(watched)()
result = held, left_behind()
""",
    )

    held, left = result
    assert len(held) > 2
    assert set(held) == {0}
    assert left == []


@pytest.mark.virtual_gpu
def test_one_large_allocation_says_itself_how_much_would_have_fitted() -> None:
    found, calls = run_on(
        "4 GiB",
        """
import torch, vramkit
calls = []
@vramkit.fit_batch_size(starting_batch_size=1000)
def embed(batch_size):
    calls.append(batch_size)
    torch.empty(batch_size, 16 << 20, dtype=torch.uint8, device="cuda")
    return batch_size
result = embed(), calls
""",
    )

    assert len(calls) <= 3
    assert 215 <= found <= 256


def test_it_leaves_the_collector_and_torch_alone_where_nothing_fails() -> None:
    enabled = gc.isenabled()
    model = torch.nn.Linear(2, 2)

    @vramkit.fit_batch_size(starting_batch_size=4)
    def train(batch_size: int) -> int:
        optimizer = torch.optim.SGD(model.parameters())
        x = torch.zeros(batch_size, 2)
        class_loss(model(x), (x, torch.zeros(batch_size, dtype=torch.long))).backward()
        optimizer.step()
        return batch_size

    assert train() == 4
    assert gc.isenabled() == enabled
