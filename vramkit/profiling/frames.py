"""What threads are in the middle of, by their frames: for what began before any hook was there. Knows no torch."""

from __future__ import annotations

import dis
import functools
import gc
import inspect
import itertools
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from types import CodeType, FrameType
from typing import Any

_looking = threading.RLock()

_LIBRARIES = frozenset({"contextlib", "torch", "vramkit"})
_TAKES_LOCALS = frozenset({"locals", "vars", "dir", "exec"})  # what eval() takes nothing has when it returns
_OR_LOOKS_AT = frozenset({"vars", "dir"})  # what they are given, as in vars(args): then they take no variables
_PYTEST = "@py_builtins"  # in functions whose asserts pytest has rewritten: those ask only whether a name is there
_REFERENCES = 3  # to a dictionary: the frame's, a variable's, an argument's


def own_frames() -> list[FrameType]:
    """This thread's frames, the innermost first."""
    return list(_up_from(inspect.currentframe()))


def frames_of_others() -> Iterator[tuple[int, FrameType]]:
    """The frames of all other threads, each thread's from the innermost on, with the thread's identity."""
    for thread, top in _innermost_of_others().items():
        for frame in _up_from(top):
            yield thread, frame


def locals_of_others() -> Iterator[object]:
    """What the other threads have at hand: every local variable of every frame."""
    for _, frame in frames_of_others():
        yield from list(frame.f_locals.values())


def _innermost_of_others() -> dict[int, FrameType]:
    # In Python before 3.12.3 the collector, which an allocation may start, can wait for ever for a lock that this call
    # holds (python/cpython#106883).
    stack = ExitStack()
    with stack, stack:  # an interrupt can come before the one's end
        stack.enter_context(_looking)  # else another thread that looks switches the collector on meanwhile
        if gc.isenabled():
            stack.callback(gc.enable)
        gc.disable()
        found = sys._current_frames()  # noqa: SLF001 - public, whatever its name
        # This thread's own would keep all frames that called this, with their variables, until the collector comes.
        del found[threading.get_ident()]
        return found


def _up_from(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def program_frames(outermost: CodeType | None) -> list[FrameType]:
    """This thread's frames but those of torch and of vramkit, the innermost first.

    Args:
        outermost: the code of the frame to end with, if it is among them.
    """
    found = []
    for frame in own_frames():
        if is_the_programs(frame):
            found.append(frame)
        if frame.f_code is outermost:
            break
    return found


def is_the_programs(frame: FrameType) -> bool:
    """Whether a frame is neither torch's nor vramkit's, nor that of a context on its way out."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] not in _LIBRARIES


def locals_of(frame: FrameType) -> dict[str, Any]:
    """The variables of a frame of this thread, or of one that is not running.

    Before Python 3.13 a function's frame keeps the dictionary that it is asked for, and with it everything that was in
    it: a tensor would outlive its variable. So it is emptied again, unless the function itself may hold it.
    """
    if sys.version_info >= (3, 13) or not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        return dict(frame.f_locals)
    if _may_hold_locals(frame.f_code):
        return {}
    kept = frame.f_locals
    found = dict(kept)
    if sys.getrefcount(kept) <= _REFERENCES:  # else a debugger or a tracer holds it
        kept.clear()
    return found


@functools.lru_cache(maxsize=4096)
def _may_hold_locals(code: CodeType) -> bool:
    """Whether a function may keep the dictionary of its variables."""
    if _PYTEST in code.co_names or not code.co_names:
        return False
    steps = [each for each in dis.get_instructions(code) if each.opname != "PRECALL"]  # Python 3.11 has one in a call
    for each, following in itertools.pairwise(steps):  # the last one returns
        if each.argval == "f_locals":
            return True
        looks_at = each.argval in _OR_LOOKS_AT and following.opname.startswith("LOAD")
        if each.opname == "LOAD_GLOBAL" and each.argval in _TAKES_LOCALS and not looks_at:
            return True
    return False
