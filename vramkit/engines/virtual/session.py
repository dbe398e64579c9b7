"""The virtual engine: the user's step, run for real on the virtual GPU in a helper process. The user's side of it.

Knows how the helper is started, kept and spoken to. What runs there is in ``helper.py``.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
import weakref
from copy import copy
from dataclasses import replace
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Literal

from ...errors import DeviceError, UsageError
from ...gpus import GPU, MAX_MEMORY
from ...programs import settings
from ...programs.batches import described
from ...programs.failed import Failed
from ...programs.failures import StepTraceback, batch_moved, more_telling, step_failed
from ...programs.layer_count import LayerCounts, StepCount
from ...programs.packing import Parcel, pack
from ...programs.program import Program, Rewrite
from ...programs.use import check_use
from ...ranks.place import Place
from ...sizes import format_size
from ...torch_internals import compiler_settings
from ...torch_internals.names import error_of
from ...torch_internals.needs import missing_for
from ...virtual_gpu.activation import ENVIRONMENT, RUN_ENVIRONMENT
from ...virtual_gpu.build import ALIASES, LIBRARY, build, find_torch
from .. import Run, Session
from ..fullest import Fullest
from .compiling import CHOSEN_BY_TIME, EACH_SIZE_IS_COMPILED, left_out, measured_first
from .messages import Answer, Ended, Open, Request, UsesCuda, send

# The virtual GPU comes before all that imports torch. Without the collector imports take 20 % less time, and there is
# nothing to collect.
_START = """
import gc, sys
gc.disable()
sys.path[:] = {path!r}
from vramkit import virtual_gpu
virtual_gpu.activate()
from vramkit.engines.virtual.helper import serve
serve({control})
"""
_MAX_CARDS = 3  # whose processes are kept
PATIENCE = 60.0
"""Seconds after which a run that has not ended is spoken of."""


def why_not() -> DeviceError | None:
    """What keeps the virtual engine from running here; None: nothing does."""
    try:
        build(find_torch())
    except DeviceError as error:
        return error
    missing = missing_for("programs", "profile", "profile on CUDA", "virtual engine")
    return error_of("A prediction on the virtual GPU was asked for", missing) if missing else None


def open_session(program: Program, alloc_conf: str | None) -> Session:
    """Make a program ready to run on the virtual GPU.

    Args:
        program: is sent by value; what it becomes later does not count.
        alloc_conf: text of ``PYTORCH_CUDA_ALLOC_CONF``; None: as in the environment.

    Raises:
        DeviceError: the virtual GPU can't be here.
        UsageError: the program can't be sent.
    """
    if (missing := why_not()) is not None:
        raise missing
    try:
        os.getcwd()  # where the step runs
        _helper()  # it imports torch while the program is packed
    except OSError as error:
        raise DeviceError(
            "vramkit.estimate was to start a helper process",
            f"the system refused: {error}",
            instead="Run from a folder that exists, and look whether processes, files or memory of this user ran out; "
            'or pass engine="fake", which needs no other process',
        ) from error
    opened = partial(
        VirtualSession,
        pack(program),
        gives_batch=program.step is not None,
        called=described(program.batch),
        alloc_conf=alloc_conf,
    )
    if len(program.places) > 1:
        return Fullest({place.rank: opened(place=place) for place in program.places})
    return opened(place=next(iter(program.places), None))


class VirtualSession:
    """One program, ready to run on any virtual card. Runs in a process for each card, forked from the helper's.

    Args:
        parcel: the program.
        gives_batch: it has a step of its own, which is given the batch.
        called: how the plain step calls the model, for the text of an error.
        alloc_conf: None: as in the environment.
        place: the rank that it is in a distributed job; None: there is none.
    """

    engine: Literal["virtual"] = "virtual"

    def __init__(
        self, parcel: Parcel, *, gives_batch: bool, called: str, alloc_conf: str | None, place: Place | None
    ) -> None:
        self._parcel = parcel
        self._gives_batch = gives_batch
        self._move_batch = parcel.move_batch
        self._notes = (*parcel.notes, *[CHOSEN_BY_TIME] * parcel.is_autotuned, *_of_rank(place))
        if parcel.is_compiled:
            self._notes += (*left_out(compiler_settings.unsendable()),)
        self._is_compiled = parcel.is_compiled  # as far as could be seen before it ran
        self._compiled: dict[int, float] = {}  # sizes that were run, and seconds
        self._opening = {
            "parcel": parcel.content,
            "environment": _environment(alloc_conf),
            "folder": os.getcwd(),
            "path": [*sys.path],
            "settings": settings.read(),
            "place": place,
        }
        self._called = "" if gives_batch else called
        self._connections: dict[GPU, _Connection] = {}  # the one that was used last comes last
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._unpack_late = False
        self._rewrite: Rewrite | None = None

    def apart(self) -> VirtualSession:
        """See `Session.apart`."""
        other = copy(self)
        vars(other).update(_connections={}, _lock=threading.Lock(), _compiled={**self._compiled})
        return other

    def rewritten(self, rewrite: Rewrite, alloc_conf: str | None = None) -> VirtualSession:
        """See `Session.rewritten`. What the two share is what runs the program, and its lock."""
        other = copy(self)
        vars(other).update(_rewrite=rewrite)
        if alloc_conf is not None:
            opening = {**self._opening, "environment": _environment(alloc_conf)}
            vars(other).update(_opening=opening, _connections={})
        return other

    def run(self, gpu: GPU, batch_size: int, *, unlimited: bool = False, detailed: bool = True) -> Run:
        """See `Session.run`."""
        return self._run(gpu, Request(batch_size=batch_size, unlimited=unlimited, detailed=detailed))

    def count_layers(self, gpu: GPU, batch_size: int) -> LayerCounts:
        """See `Session.count_layers`."""
        request = Request(batch_size=batch_size, unlimited=True, detailed=False, counts_layers=True)
        layers = self._run(gpu, request).layers
        assert layers is not None
        return layers

    def count_step(self, gpu: GPU, batch_size: int) -> StepCount:
        """See `Session.count_step`."""
        step = self._run(gpu, Request(batch_size=batch_size, unlimited=True, detailed=False, counts_step=True)).step
        assert step is not None
        return step

    def _run(self, gpu: GPU, request: Request) -> Run:
        if gpu.memory > MAX_MEMORY:
            raise UsageError(
                f"A prediction for {gpu} was asked for",
                instead=f"No virtual card is larger than {format_size(MAX_MEMORY)}",
            )
        with self._lock:
            self._warn_of_compiling(request.batch_size)
            began = time.monotonic()
            request = replace(request, move_batch=self._move_batch, rewrite=self._rewrite)
            answer = self._ask(gpu, request)
            if isinstance(answer, Failed) and answer.step and self._gives_batch and not self._move_batch:
                again = self._ask(gpu, replace(request, move_batch=True))
                if isinstance(again, Run):
                    self._move_batch, self._notes = True, (*self._notes, batch_moved(answer))
                    answer = again
                elif isinstance(again, Failed):
                    answer = more_telling(answer, again)
            if isinstance(answer, Run):
                self._is_compiled |= answer.compiled
                if answer.measured_kernels:
                    answer = self._settled(gpu, request, answer)
            self._compiled.setdefault(request.batch_size, time.monotonic() - began)
        if isinstance(answer, Failed):
            raise step_failed(answer, self._called) from StepTraceback("in the helper process", answer.traceback)
        if self._gives_batch and self._parcel.models and answer.profile is not None and not answer.ran_out:
            check_use(answer.profile.tape, self._parcel.models)
        return replace(answer, notes=(*answer.notes, *self._notes))

    def _warn_of_compiling(self, batch_size: int) -> None:
        """Warns: UserWarning: a second batch size is about to be compiled."""
        if self._is_compiled and len(self._compiled) == 1 and batch_size not in self._compiled:
            [seconds] = self._compiled.values()
            warnings.warn(EACH_SIZE_IS_COMPILED.format(seconds=seconds), stacklevel=2)

    def _settled(self, gpu: GPU, request: Request, first: Run) -> Run | Failed:
        """A run that finds its kernels in the cache, after one that has measured them."""
        answer = self._ask(gpu, replace(request, move_batch=self._move_batch))
        if isinstance(answer, Run):
            answer = replace(answer, notes=(*answer.notes, *filter(None, [measured_first(first, answer)])))
        return answer

    def _open(self, gpu: GPU) -> Open:
        return Open(gpu=gpu, unpack_late=self._unpack_late, **self._opening)  # type: ignore[arg-type] # by their names

    def _ask(self, gpu: GPU, request: Request) -> Run | Failed:
        if self._owner != os.getpid():  # a fork: two processes on one pipe would get each other's answers
            self._connections, self._owner = {}, os.getpid()
        for is_second in (False, True):
            connection = self._connections.pop(gpu, None)
            is_new = connection is None
            try:
                if connection is None:
                    connection = _Connection()
                    refusal = connection.ask(self._open(gpu))
                    if isinstance(refusal, UsesCuda):
                        self._unpack_late, connection = True, _Connection()
                        refusal = connection.ask(self._open(gpu))
                    if isinstance(refusal, Failed):
                        return refusal
                    while len(self._connections) >= _MAX_CARDS:
                        del self._connections[next(iter(self._connections))]
                answer = connection.ask(request)
                self._connections[gpu] = connection
                if isinstance(answer, (Run, Failed)):
                    return answer
                assert isinstance(answer, Ended)
            except (EOFError, OSError):
                # It ended: after a while without work it does. Another one will tell.
                if not is_second:
                    if is_new:
                        _drop_helper()
                    continue
                answer = Ended(status=1)
            raise _died(answer, connection)
        raise AssertionError


def _of_rank(place: Place | None) -> list[str]:
    if place is None:
        return []
    return [
        f"Rank {place.rank} of {place.world_size:,} was played alone: what the others send is taken to be what it "
        "sends itself."
    ]


def _environment(alloc_conf: str | None) -> dict[str, str]:
    """This process's environment for one with a virtual GPU of its own."""
    environment = {**os.environ}
    # A parent's virtual GPU and the choice among its devices are not this one's; nor is it a script's process.
    for name in (ENVIRONMENT, RUN_ENVIRONMENT, "CUDA_VISIBLE_DEVICES"):
        environment.pop(name, None)
    ours = {LIBRARY, *ALIASES}
    preloaded = [path for path in environment.get("LD_PRELOAD", "").split(":") if os.path.basename(path) not in ours]
    environment.pop("LD_PRELOAD", None)
    if any(preloaded):
        environment["LD_PRELOAD"] = ":".join(preloaded)
    if alloc_conf is not None:
        environment.pop("PYTORCH_ALLOC_CONF", None)
        environment["PYTORCH_CUDA_ALLOC_CONF"] = alloc_conf
    return environment


def _died(answer: Ended, connection: _Connection | None) -> DeviceError:
    tail = connection.tail() if connection else ""
    how = f"signal {-answer.status}" if answer.status < 0 else f"status {answer.status}"
    return DeviceError(
        "vramkit.estimate was to run a training step in a helper process",
        f"the process ended with {how}" + (f". The end of its output was:\n{tail}\n" if tail else ", without a word"),
        instead="Look there for what the step did; if it did nothing of the kind, please report it",
    )


# -- the process -------------------------------------------------------------------------------------------------------


class _Connection:
    """A session's end of a pipe, and the file that its output goes to."""

    def __init__(self) -> None:
        self._pipe, theirs = Pipe()
        self._output = _file_in_memory()
        weakref.finalize(self, _close, self._pipe, self._output)
        with theirs:
            _helper().fork(theirs, self._output)

    def ask(self, message: object) -> Answer:
        """Say something and wait for the answer.

        Warns:
            UserWarning: a run takes long.
        """
        send(self._pipe, message)
        try:
            if isinstance(message, Request) and not self._pipe.poll(PATIENCE):
                warnings.warn(
                    f"The training step has been running for {PATIENCE:.0f} s on the virtual GPU. Kernels compute "
                    "nothing there, so a loop that waits for a value on the device does not end: give it a number of "
                    "rounds. torch.compile may take as long, until its cache is filled. Ctrl-C stops the run",
                    stacklevel=2,
                )
            answer: Answer = self._pipe.recv()
        except BaseException:
            self._pipe.close()  # interrupted: nobody waits for that answer any more, and the run is stopped
            raise
        return answer

    def tail(self) -> str:
        """The end of what the session printed; of what its helper did, where there was no session."""
        return _tail(self._output) or (_tail(_current.output) if _current is not None else "")


def _file_in_memory() -> IO[bytes]:
    return open(os.memfd_create("vramkit"), "r+b")  # no disk is full, and no folder missing, where it is


def _tail(output: IO[bytes], limit: int = 2000) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - limit))
    return output.read().decode(errors="replace").strip()


def _close(connection: Connection, output: IO[bytes]) -> None:
    connection.close()
    output.close()


class _Helper:
    """The process that imported torch on the virtual GPU, and forks a session whenever it is asked to."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._control, theirs = socket.socketpair()
        with theirs:
            code = _START.format(path=sys.path, control=theirs.fileno())
            self.output = _file_in_memory()
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", code],
                    stdin=subprocess.DEVNULL,
                    stdout=self.output,
                    stderr=self.output,
                    env=_environment(None),
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C is for the user's process, which ends what it had asked for
                )
            except BaseException:
                self._control.close()
                self.output.close()
                raise

    @property
    def is_alive(self) -> bool:
        return self.owner == os.getpid() and self._process.poll() is None

    def fork(self, connection: Connection, output: IO[bytes]) -> None:
        """Let a session begin at the other end of a pipe. Raises: OSError if the process has ended."""
        socket.send_fds(self._control, [b"s"], [connection.fileno(), output.fileno()])

    def close(self) -> None:
        """End it."""
        self._control.close()
        self.output.close()
        if self.owner == os.getpid():
            self._process.wait()
        else:
            self._process.returncode = 0  # a fork's copy: it can't wait for what is not its child


_current: _Helper | None = None
_current_lock = threading.Lock()


def _drop_helper() -> None:
    """Give up a helper that began no session: it is ending, or has ended, though it may not show yet."""
    global _current
    with _current_lock:
        if _current is not None:
            _current.close()
            atexit.unregister(_current.close)
            _current = None


def _helper() -> _Helper:
    global _current
    if _current is not None and not _current.is_alive:
        _drop_helper()
    with _current_lock:
        if _current is None:
            _current = _Helper()
            atexit.register(_current.close)
        return _current
