"""Running out of memory is told by type, and what a failure's frames hold is let go."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from vramkit.out_of_memory import forget, is_out_of_memory, quick_collections


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("any text"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_a_failed_allocation_is_told(error):
    assert is_out_of_memory(error)
    assert is_out_of_memory(raised(ValueError("in my loop"), cause=error))


@pytest.mark.parametrize(
    "error", [RuntimeError("out of memory"), ValueError("CUBLAS_STATUS_ALLOC_FAILED"), KeyError(1), None]
)
def test_what_only_sounds_like_it_is_not(error):
    assert not is_out_of_memory(error)


def test_an_interrupt_while_one_was_handled_stays_an_interrupt():
    try:
        try:
            raise torch.OutOfMemoryError
        except torch.OutOfMemoryError:
            raise KeyboardInterrupt from None
    except KeyboardInterrupt as error:
        interrupt = error

    assert isinstance(interrupt.__context__, torch.OutOfMemoryError)
    assert not is_out_of_memory(interrupt)


def test_frames_of_a_failure_and_of_its_cause_hold_nothing_any_more():
    class Large:
        pass

    kept = []

    def fail() -> None:
        local = Large()
        kept.append(weakref.ref(local))
        raise torch.OutOfMemoryError

    def wrap() -> None:
        local = Large()
        kept.append(weakref.ref(local))
        try:
            fail()
        except torch.OutOfMemoryError as error:
            raise RuntimeError("mine") from error

    try:
        wrap()
    except RuntimeError as error:
        held = error
        forget(held)

    assert [each() for each in kept] == [None, None]


def test_quick_collections_freeze_nothing_for_good():
    before = gc.get_freeze_count()

    with quick_collections():
        inside = gc.get_freeze_count()

    assert inside > before
    assert gc.get_freeze_count() == before
