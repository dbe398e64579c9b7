"""What ends a script before its own end: so many steps, a time, Ctrl-C. Knows nothing of memory."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ..errors import UsageError

TIMED_OUT = 124
"""The exit code, which is that of ``timeout`` too."""
INTERRUPTED = 130
_AGAIN = 30.0  # seconds: where the script swallowed it, or cleans up for so long


class Ended(SystemExit):
    """Goes through a script as ``sys.exit()`` would: past ``except Exception``, and ``finally`` and ``with`` run."""


class StepLimit:
    """Ends a script after so many training steps.

    Args:
        steps: how many; None: never.
    """

    def __init__(self, steps: int | None) -> None:
        self.count = 0
        """How many have ended."""
        self._steps = steps

    @property
    def is_reached(self) -> bool:
        """Whether that is why the script ended."""
        return self._steps is not None and self.count >= self._steps

    @property
    def note(self) -> str:
        """What a profile says then."""
        return (
            f"Ended after {self.count} training step{'s' * (self.count != 1)}, as --steps asked: what the script does "
            "later is not in this."
        )

    def step_ended(self, count: int) -> None:
        """Raise `Ended` where it was the last. Again and again, should the script swallow it."""
        self.count = count
        if self.is_reached:
            raise Ended(0)


class Timeout:
    """Ends a script after a time.

    Args:
        seconds: how long; None: never.
    """

    def __init__(self, seconds: float | None) -> None:
        if seconds is not None and not hasattr(signal, "setitimer"):
            raise UsageError("--timeout was given", "this system has no timer that interrupts a program")
        self.is_over = False
        """Whether that is why the script ended."""
        self._seconds = seconds

    @contextmanager
    def running(self, at_end: Callable[[], object]) -> Iterator[None]:
        """Measure the time while a block runs, and raise `Ended` in it.

        Args:
            at_end: called first.
        """
        if self._seconds is None:
            yield
            return
        process = os.getpid()

        def time_is_up(number: int, frame: FrameType | None) -> None:
            if os.getpid() == process:
                self.is_over = True
                at_end()
                raise Ended(TIMED_OUT)

        before = signal.signal(signal.SIGALRM, time_is_up)
        signal.setitimer(signal.ITIMER_REAL, self._seconds, _AGAIN)
        try:
            yield
        finally:
            if os.getpid() == process:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)


def was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C ended a script, also one that made something else of it, as Lightning does."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False
