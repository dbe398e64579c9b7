"""Running out of memory: how it is told from other failures, and how a process is usable again afterwards. Knows
exceptions; knows nothing of batches.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_CUDA_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
# The libraries have no exception of their own in torch: the name of their status is what there is. Names are part
# of their interface, the sentences around them are not.
_STATUS = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
    "CUDA driver error: out of memory",  # expandable segments ask the driver
    # Each of cuDNN's plans was tried, and none had room for its workspace. Wrong where there is no plan at all; then
    # the smallest size fails too, and this error is the cause that is shown.
    "unable to find an engine to execute this computation",
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception means that the device's memory ran out, or was made of one that does.

    Args:
        error: ``torch.OutOfMemoryError``, an allocation that failed inside CUDA, cuBLAS or cuDNN, or an exception that
            one of these is the cause of. An interrupt that came while one was handled is none.
    """
    return isinstance(error, Exception) and any(_ran_out(each) for each in _chain(error))


def forget(error: BaseException) -> None:
    """Let go of what the frames of a failure hold: tensors that were local there, and the graphs behind them.

    Args:
        error: caught, and its except block about to be left; it is of no more use than its type and text.
    """
    for each in _chain(error):
        traceback.clear_frames(each.__traceback__)
        each.__traceback__ = None


def clean_up() -> None:
    """Give back to the device what nothing holds any more, cycles of objects included."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # torch's
        torch.cuda.empty_cache()


@contextmanager
def quick_collections(*, after_one: bool = True) -> Iterator[None]:
    """Inside, garbage collections look only at what was made inside: torch alone has objects for 0.3 s.

    Args:
        after_one: collect everything first, so that no garbage from before keeps its memory inside.
    """
    if after_one:
        gc.collect()
    if gc.get_freeze_count():  # the program does so itself, and what it froze must stay so
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _ran_out(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if getattr(error, "error_code", None) == _CUDA_OUT_OF_MEMORY and isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and any(status in str(error) for status in _STATUS)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()  # chains can be circular
    here: BaseException | None = error
    while here is not None and id(here) not in seen:
        seen.add(id(here))
        yield here
        here = here.__cause__ or here.__context__
