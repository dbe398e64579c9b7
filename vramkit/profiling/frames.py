"""What threads are in the middle of, by their frames: for what began before any hook was there. Knows no torch."""

from __future__ import annotations

import gc
import inspect
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from types import FrameType

_looking = threading.RLock()


def own_frames() -> list[FrameType]:
    """This thread's frames, the innermost first."""
    return list(_up_from(inspect.currentframe()))


def frames_of_others() -> Iterator[tuple[int, FrameType]]:
    """The frames of all other threads, each thread's from the innermost on, with the thread's identity."""
    own = threading.get_ident()
    for thread, top in _innermost().items():
        if thread != own:
            for frame in _up_from(top):
                yield thread, frame


def locals_of_others() -> Iterator[object]:
    """What the other threads have at hand: every local variable of every frame."""
    for _, frame in frames_of_others():
        yield from list(frame.f_locals.values())


def _innermost() -> dict[int, FrameType]:
    # In Python before 3.12.3 the collector, which an allocation may start, can wait for ever for a lock that this call
    # holds (python/cpython#106883).
    stack = ExitStack()
    with stack, stack:  # an interrupt can come before the one's end
        stack.enter_context(_looking)  # else another thread that looks switches the collector on meanwhile
        if gc.isenabled():
            stack.callback(gc.enable)
        gc.disable()
        return sys._current_frames()  # noqa: SLF001 - public, whatever its name


def _up_from(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
