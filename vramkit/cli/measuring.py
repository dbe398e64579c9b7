"""Measures a process from its first use of CUDA on: the one that runs the script, or one that it started.

So a process that never uses CUDA costs nothing, says nothing, and leaves its forks free to use it. Knows when to begin
and when to end; how processes speak with each other, ``processes`` beside this file knows.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from ..errors import VramkitError
from ..sizes import format_size
from ..virtual_gpu import current
from .endings import Ended, StepLimit
from .processes import Entry, Task, noted
from .script import without_note

if TYPE_CHECKING:
    from ..profiling.profiler import profile
    from ..results.profile import Profile

_TERMINATED = 128 + signal.SIGTERM
_WHO = "vramkit run"
_FIRST = 1000  # of multiprocessing's finalizers: before those that end the process's own children


class Measurement:
    """The measurement of one process. A fork of it that begins to use CUDA has one of its own, by this same object.

    Args:
        task: what to measure, and where to leave it.
        limit: is told of training steps.
        owner: the process that takes its result itself; 0: none, each leaves it in the task's folder.
    """

    def __init__(self, task: Task, limit: StepLimit, *, owner: int = 0) -> None:
        self.error: VramkitError | None = None
        """Why nothing could be measured."""
        self._task = task
        self._limit = limit
        self._owner = owner
        self._process = 0
        self._measuring: profile | None = None
        self._entry: Entry | None = None
        self._is_terminated = self._is_leaving = False
        self._peak = 0

    def arm(self) -> None:
        """Begin when this process, or a fork of it, begins to use CUDA. torch has to be there."""
        from ..torch_internals.cuda_start import around_start

        if self._task.plays_ranks:
            from ..ranks.playing import play

            play(self._task.job(), placed=self._task.is_placed)
        if os.getpid() == self._owner:
            from ..profiling.profiler import measured_by

            measured_by(_WHO)  # a script that measures itself is told who does already
        around_start(self._prepare, self._begin)

    @property
    def has_begun(self) -> bool:
        """Whether this process has used CUDA."""
        return self._process == os.getpid()

    def line(self) -> str:
        """How far the process is, in one line: its steps, and the memory of the device that holds most."""
        if self._measuring is None or not self.has_begun:
            return ""
        torch = sys.modules["torch"]
        devices = range(torch.cuda.device_count())
        now = max((torch.cuda.memory_allocated(each) for each in devices), default=0)
        # A script may have torch begin anew with its peaks.
        self._peak = max(self._peak, now, *(torch.cuda.max_memory_allocated(each) for each in devices))
        return f"vramkit: step {self._limit.count + 1}, {format_size(now)} allocated, at most {format_size(self._peak)}"

    def end(self, error: BaseException | None = None) -> Profile | None:
        """What was measured in this process; None: nothing.

        Args:
            error: what ended the program.
        """
        from ..profiling.profiler import measured_by

        if self._owner == os.getpid():
            measured_by("")
        measuring, self._measuring = self._measuring, None
        if measuring is None or not self.has_begun:
            return None
        measuring.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
        measured_by("")
        return noted(measuring.result, self._limit.note) if self._limit.is_reached else measuring.result

    def _prepare(self) -> None:
        current()  # whose settings came through the environment: values are computed from the first use on

    def _begin(self) -> None:
        from ..profiling import profiler

        self._process = os.getpid()
        if self._process == self._owner:
            profiler.measured_by("")
        else:
            self._entry = Entry(self._task.folder)
        try:
            measuring = profiler.profile(
                device="cuda",
                max_events=self._task.max_events,
                stacks=self._task.stacks,
                on_step=self._limit.step_ended,
            )
            measuring.__enter__()
        except VramkitError as error:
            self.error = error
            if self._entry is not None:
                self._entry.fail(f"could not be measured: {error}")
            return
        profiler.measured_by(_WHO)
        self._measuring = measuring
        if self._entry is not None:
            self._leave_at_exit()

    # -- the end of a process that the script started ------------------------------------------------------------------

    def _leave_at_exit(self) -> None:
        atexit.register(self._leave)
        sys.excepthook = self._leaving_first(sys.excepthook)
        multiprocessing = sys.modules.get("multiprocessing")
        if multiprocessing is not None and multiprocessing.parent_process() is not None:
            from multiprocessing import util

            util.Finalize(None, self._leave, exitpriority=_FIRST)  # its processes end without atexit
        with suppress(ValueError):  # not in the main thread
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # by which pools end their workers
                signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        if not self.has_begun:  # a fork
            _die_of(signal.SIGTERM)
        self._is_terminated = True
        if not self._is_leaving:
            raise Ended(_TERMINATED)

    def _leaving_first(self, show: Callable[..., object]) -> Callable[..., object]:
        """Tell an error that ends the process which limit it comes from, if it comes from one, before it is shown."""

        def shown(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> object:
            self._leave(error)
            return show(kind, error, traceback)

        return shown

    def _leave(self, error: BaseException | None = None) -> None:
        if not self.has_begun or self._entry is None or self._is_leaving:
            return
        self._is_leaving = True  # what it is told now has to wait
        try:
            result = self.end(error)
            if result is not None:
                if error is not None:
                    without_note(error, result.report())
                self._entry.leave(result)
        except Exception as failure:  # whatever it is, it must not be the last thing that the program says
            self._entry.fail(f"could not be measured: {failure!r}")
        if self._is_terminated:
            _die_of(signal.SIGTERM)


def measure_child() -> None:
    """Measure this process, which a measured script started. Called when torch has been imported."""
    task = Task.inherited()
    if task is not None:
        Measurement(task, StepLimit(task.steps)).arm()


def _die_of(number: signal.Signals) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
