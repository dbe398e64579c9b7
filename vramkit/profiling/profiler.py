"""``vramkit.profile``: measure where memory goes while a block of code runs. Chooses the source; settles the result."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from typing_extensions import Self

from .._version import __version__
from ..attribution.recording import Recording
from ..counts import check_count
from ..errors import DeviceError, UsageError
from ..out_of_memory import is_out_of_memory
from ..programs.objects import Models, Optimizers, models_of, optimizers_of
from ..results.profile import Profile
from ..tape.events import ALLOCATION, EVENT, Tape
from ..torch_internals.names import Need
from ..torch_internals.needs import require
from . import first_step, measuring
from .hooks import Hooks
from .limits import Limits
from .marks import Marks
from .settling import tape_of
from .whole import Whole, whole_of

_FOUND = "a sequence or a dict of them; or none, and what runs is found"

NEEDS: Mapping[str, tuple[Need, ...]] = {
    "cuda": ("profile", "profile on CUDA"),
    "cpu": ("profile", "profile on the CPU"),
}
"""What a profile needs of torch's private names, by the kind of device."""


class _Source(Protocol):
    @property
    def marks(self) -> Marks: ...
    @property
    def hooks(self) -> Hooks: ...
    def start(self, stack: ExitStack) -> None: ...
    def stop(self, error: BaseException | None = None) -> None: ...
    def recordings(self) -> list[Recording]: ...


class _LookedUp:
    """A method that is another object's. Python looks ``__exit__`` up before the block begins."""

    def __init__(self, find: Callable[[Any], Callable[..., object]]) -> None:
        self._find = find

    def __get__(self, instance: object, owner: type) -> Any:
        return self if instance is None else self._find(instance)

    def __call__(self, instance: object, *args: Any) -> object:
        return self._find(instance)(*args)


@dataclass
class _Measuring:
    """What this process measures: torch's hooks and history are the process's, so two profiles would see each other."""

    active: profile | None = None
    process: int = 0
    """Identity of the process; a fork inside the block is not measured, and may measure itself."""
    owner: str = ""
    """Who measures or is about to, where it isn't the user's own block."""


_measuring = _Measuring()


class profile:  # noqa: N801 - used as a verb: `with vramkit.profile(...)`
    """Measure where the memory goes while a block of code runs.

    ::

        with vramkit.profile(model, optimizer) as prof:
            for batch in loader:
                train_step(batch)
        print(prof.result)

    On CUDA this is the allocator's own history, with marks from module, gradient and optimizer hooks; no Python runs
    for an operator. On the CPU it records the lifetimes of storages.

    Args:
        model: one module, a sequence, or a dict of them by name. None: whatever runs inside the block is found.
        optimizer: one ``torch.optim.Optimizer``, a sequence, or a dict of them by name. None: as above.
        device: "cuda" or "cpu", what to record. With an index, "cuda:1", the result is that device's, and else the
            fullest one's; the others are in it. None: where the models' parameters are; without models, CUDA if there
            is a device.
        max_events: how many events of each device to keep, at most. Of more, the last are kept, and
            ``result.notes`` says how many were dropped. An event takes about 0.2 kB while it is recorded and 1 kB more
            for a moment at the end; what the program was doing takes some 3 kB a step beside that.
        stacks: record also where each allocation was made: the line of your own code, and the stack around it.
            ``result.tape.stacks`` has them, and every report shows the line. Frames of torch, of Python's own library
            and of what a compiler wrote are passed over, and those of other packages where there is one of yours. A
            backward runs no line of yours: what it makes has the line of the forward whose gradient it computes, with
            torch 2.11 or newer; of what was computed before the block, and in older versions, none.
        on_step: called with the number of training steps that have ended, each time that one has: when each optimizer
            in use has stepped. What it raises goes through the program, out of the optimizer's step.

    Raises:
        UsageError: an argument is not what it should be; on entering, a profile is being measured already.
        DeviceError: on entering, there is no such device.

    An exception passes through, the result is there all the same. ``torch.OutOfMemoryError`` gets the report of what
    held the memory as a note.

    *Known limitations.* Threads that train at the same time are told apart, but steps are counted over all of them; on
    the CPU only the operators of the thread that entered are recorded. Gradients that two threads write into one model
    at the same time may come out as "other".
    """

    def __init__(
        self,
        model: Models | None = None,
        optimizer: Optimizers | None = None,
        *,
        device: str | torch.device | None = None,
        max_events: int = 500_000,
        stacks: bool = False,
        on_step: Callable[[int], object] | None = None,
    ) -> None:
        self._models = models_of("vramkit.profile was called", model, f"Pass an nn.Module, {_FOUND}")
        self._optimizers = optimizers_of(
            "vramkit.profile was called", optimizer, f"Pass a torch.optim.Optimizer, {_FOUND}"
        )
        self._max_events = check_count("vramkit.profile was called", "max_events", max_events, maximum=sys.maxsize)
        self._stacks = stacks
        self._on_step = on_step
        self._device = _device(device, self._models)
        self._stack = ExitStack()
        self._source: _Source | None = None
        self._recorded: _Source | None = None
        self._result: Profile | None = None
        self._entered = False
        self._limits = Limits()
        self._whole: Whole | None = None

    def __enter__(self) -> Self:
        if self._entered:
            raise UsageError(
                "A vramkit.profile was entered for the second time",
                instead="Make a new one for each block: with vramkit.profile(...) as prof",
            )
        if is_measuring():
            owner = _measuring.owner
            raise UsageError(
                "A vramkit.profile was entered",
                f"another one is still measuring in this process{f', of {owner}' if owner else ''}",
                "their marks would mix",
                f"{owner} measures the whole script already: take the block out, or run the script with python"
                if owner
                else "Leave the outer block first, or measure both in one and end the parts with prof.step()",
            )
        _check_is_there(self._device)
        require("A vramkit.profile was entered", *NEEDS[self._device.type])
        stack = self._stack
        try:
            source = _source(self._device, self._max_events, stacks=self._stacks)
            source.hooks.add_models(self._models)
            source.hooks.add_optimizers(self._optimizers.values())
            if self._on_step is not None:
                source.hooks.tell_of_steps(self._on_step)
            stack.push(self._settle)  # the last to run
            stack.callback(setattr, _measuring, "active", None)
            stack.callback(setattr, self, "_source", None)
            self._limits = Limits()
            _measuring.process = os.getpid()
            _measuring.active = self  # from here on: CUDA may begin now, and with it what waits for that
            source.start(stack)
            stack.push(self._stop)  # the first to run, while everything is still there
            self._source = source
            self._entered = True
            return self
        except BaseException:
            stack.close()
            raise

    if TYPE_CHECKING:

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
        ) -> None: ...

    else:
        # The stack's own: were it a function of this file, an interrupt at its first line would leave everything on.
        __exit__ = _LookedUp(lambda self: self._stack.__exit__)

    def _stop(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        source = self._source
        if source is not None:
            with _beside(error):
                source.stop(error)
                self._recorded = source
                models, optimizers = source.hooks.alive()
                self._limits.stop(optimizers)
                failed = is_out_of_memory(error)
                self._whole = whole_of(models, optimizers, source.marks.kept, failed=failed)

    def _settle(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        source, self._recorded = self._recorded, None
        if source is not None:
            self._models, self._optimizers = {}, {}  # a result must not keep the program's objects alive
            with _beside(error):
                limit = self._limits.behind(error)
                self._result = _result_of(source, self._device, self._limits, limit, self._whole)
                note = self._result.report() if is_out_of_memory(error) else limit
                if error is not None and note is not None:
                    _add_note(error, note)

    def step(self) -> None:
        """End a training step. Optional: without it, steps are told apart by the optimizers' steps.

        Raises:
            UsageError: outside the block.
        """
        if self._source is None:
            raise UsageError(
                "prof.step() was called",
                "nothing is being measured" if self._entered else "the profile was not entered",
                instead="Call it inside the block: with vramkit.profile(...) as prof",
            )
        self._source.hooks.step()

    @property
    def result(self) -> Profile:
        """What was measured; there as soon as the block is left, also by an exception.

        Raises:
            UsageError: the block was not left, or never entered.
        """
        if self._result is None:
            raise UsageError(
                "prof.result was read",
                "the block is still running" if self._entered else "the profile was not entered",
                "what an allocation was for is known only afterwards",
                "Read it after the with block",
            )
        return self._result


def _device(device: str | torch.device | None, models: Mapping[str, torch.nn.Module]) -> torch.device:
    """What to measure; an index says which device the result is of, as all devices of a kind are measured at once."""
    if device is not None:
        try:
            found = torch.device(device)
        except (RuntimeError, TypeError):
            found = None
        if found is None or found.type not in ("cuda", "cpu"):
            raise UsageError(
                "vramkit.profile was given a device",
                f"{device!r}",
                "only CUDA devices and the CPU can be measured",
                'Pass device="cuda" or device="cpu", or leave it out',
            )
        return found
    held = [t for model in models.values() for t in (*model.parameters(), *model.buffers())]
    kinds = {tensor.device.type for tensor in held}
    if models and not kinds - {"meta"}:
        raise UsageError(
            "vramkit.profile was given a model and no device",
            "the model is on the meta device" if kinds else "the model has no parameters and no buffers",
            "so nothing says which device to measure",
            'Pass device="cuda" or device="cpu"; to predict without running, use vramkit.estimate',
        )
    if "cuda" in kinds:
        return torch.device("cuda")
    if models:
        return torch.device("cpu")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _check_is_there(device: torch.device) -> None:
    if device.type == "cuda":
        if device.index is not None and torch.cuda.is_available() and device.index >= torch.cuda.device_count():
            raise DeviceError(
                f"vramkit.profile was to measure {device}",
                f"there are {torch.cuda.device_count()} CUDA devices, from cuda:0 on",
                instead="Name one of those",
            )
        if not torch.cuda.is_available():
            raise DeviceError(
                "vramkit.profile was to measure CUDA memory",
                "torch finds no CUDA device",
                instead='Switch the virtual GPU on before importing torch (vramkit.virtual_gpu.activate("a100-40gb"), '
                'or `vramkit run --gpu a100-40gb script.py`), or pass device="cpu"',
            )


def _source(device: torch.device, max_events: int, *, stacks: bool) -> _Source:
    if device.type == "cuda":
        from .cuda import CudaHistory

        return CudaHistory(max_events, stacks=stacks)
    from .cpu import StorageLifetimes

    return StorageLifetimes(max_events, stacks=stacks)


def _result_of(
    source: _Source, device: torch.device, limits: Limits, ended_by: str | None, whole: Whole | None
) -> Profile:
    recordings, marks, modules = source.recordings(), source.marks, source.hooks.modules
    optimizers = source.hooks.trained_by()
    said = limits.notes(marks, modules.by_index())
    said += filter(None, [modules.compiled_note()])
    if ended_by is not None:
        said.insert(0, f"The program ended by an exception. {ended_by}")
    versions = {"torch": torch.__version__, "vramkit": __version__, "python": sys.version.split()[0]}
    tapes = [tape_of(recording, marks, modules, optimizers) for recording in recordings]
    profiles = [
        Profile(
            tape=tape,
            device_name=torch.cuda.get_device_name(recording.device) if device.type == "cuda" else "",
            capacity=recording.capacity,
            outside=recording.outside,
            nccl=recording.nccl,
            versions=versions,
            notes=(*recording.notes, *said, *filter(None, [measuring.note_of(tape), first_step.note_of(tape)])),
        )
        for recording, tape in zip(recordings, tapes, strict=True)
    ]
    if not profiles:
        empty = Tape(events=np.zeros(0, EVENT), allocations=np.zeros(0, ALLOCATION), device=str(device))
        return Profile(tape=empty, versions=versions, notes=("Nothing used the device inside the block.", *said))
    profiles.sort(key=lambda each: (each.device != str(device), -each.peak_reserved))
    first, *others = profiles
    if whole is not None:
        first = replace(first, notes=(*first.notes, whole.note(first.capacity)))
    return replace(first, others=tuple(others))


@contextmanager
def _beside(error: BaseException | None) -> Iterator[None]:
    """Let nothing of this recording's take the place of what the program raised."""
    try:
        yield
    except Exception as failure:
        if error is None:
            raise
        _add_note(error, f"vramkit.profile could not settle what it had measured: {failure!r}")


def is_measuring() -> bool:
    """Whether a profile measures in this process, or somebody is about to; a fork inside its block is not measured."""
    return (_measuring.active is not None or bool(_measuring.owner)) and _measuring.process == os.getpid()


def measured_by(owner: str) -> None:
    """Say who measures this process, or will from its first use of CUDA on: nobody else may. Empty: anybody may."""
    _measuring.owner, _measuring.process = owner, os.getpid()


def _add_note(error: BaseException, note: str) -> None:
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:  # Python 3.10 prints no notes, but tools read them
        setattr(error, "__notes__", [*getattr(error, "__notes__", []), note])  # noqa: B010 - unknown to its type
