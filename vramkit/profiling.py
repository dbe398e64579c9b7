"""``vramkit.profile``: measure where memory goes while a block of code runs. Chooses the source; settles the result."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Protocol, TypeVar

import numpy as np
import torch
from typing_extensions import Self

from . import __version__
from .attribution import attribute
from .errors import DeviceError, UsageError
from .events import ALLOCATION, EVENT, Tape
from .recording.marks import Marks
from .recording.recorded import Recording
from .result import Profile

Models = torch.nn.Module | Sequence[torch.nn.Module] | Mapping[str, torch.nn.Module]
Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | Mapping[str, torch.optim.Optimizer]


class _Source(Protocol):
    @property
    def marks(self) -> Marks: ...
    def start(self) -> None: ...
    def stop(self) -> list[Recording]: ...


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
        device: "cuda" or "cpu", what to record. None: where the models' parameters are; without models, CUDA if
            there is a device.
        max_events: how many events of each device to keep, at most. Of more, the last are kept, and
            ``result.notes`` says how many were dropped. An event takes about 0.2 kB while it is recorded and 1 kB more
            for a moment at the end.

    Raises:
        UsageError: an argument is not what it should be; on entering, a profile is being measured already.
        DeviceError: on entering, there is no such device.

    An exception passes through, the result is there all the same. ``torch.OutOfMemoryError`` gets the report of what
    held the memory as a note.
    """

    _active: profile | None = None  # torch's hooks and history are the process's, so two would see each other

    def __init__(
        self,
        model: Models | None = None,
        optimizer: Optimizers | None = None,
        *,
        device: str | torch.device | None = None,
        max_events: int = 500_000,
    ) -> None:
        self._models = _several(model, torch.nn.Module, "model", "an nn.Module")
        self._optimizers = _several(optimizer, torch.optim.Optimizer, "optimizer", "a torch.optim.Optimizer")
        if not isinstance(max_events, int) or isinstance(max_events, bool) or max_events < 1:
            raise UsageError(
                "vramkit.profile was given max_events",
                f"{max_events!r}",
                "a recording without events shows nothing",
                "Give a whole number of at least 1; 500000 is the default",
            )
        self._device = _device_type(device, self._models)
        self._max_events = max_events
        self._source: _Source | None = None
        self._result: Profile | None = None
        self._entered = False

    def __enter__(self) -> Self:
        if self._entered:
            raise UsageError(
                "A vramkit.profile was entered for the second time",
                instead="Make a new one for each block: with vramkit.profile(...) as prof",
            )
        if profile._active is not None:
            raise UsageError(
                "A vramkit.profile was entered",
                "another one is still measuring in this process",
                "their marks would mix",
                "Leave the outer block first, or measure both in one and end the parts with prof.step()",
            )
        source = _source(self._device, self._max_events)
        source.marks.add_models(self._models)
        source.marks.add_optimizers(self._optimizers.values())
        source.start()
        self._entered = True
        self._source = source
        profile._active = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        source, self._source = self._source, None
        assert source is not None
        self._models, self._optimizers = {}, {}  # a result must not keep the program's objects alive
        with ExitStack() as stack:
            stack.callback(setattr, profile, "_active", None)
            recordings = source.stop()
        marks = source.marks
        self._result = _settle(recordings, marks, self._device)
        if isinstance(error, torch.OutOfMemoryError):
            _add_note(error, self._result.report())

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
        self._source.marks.step()

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


_T = TypeVar("_T")


def _several(given: object, kind: type[_T], word: str, wanted: str) -> dict[str, _T]:
    if given is None:
        return {}
    if isinstance(given, kind):
        return {_unique(given, {}): given}
    named: dict[str, object] = {}
    if isinstance(given, Mapping):
        named = {str(name): each for name, each in given.items()}
    elif isinstance(given, Iterable) and not isinstance(given, (str, bytes, torch.Tensor)):
        for each in given:
            named[_unique(each, named)] = each
    else:
        named = {"": given}
    checked: dict[str, _T] = {}
    for name, each in named.items():
        if not isinstance(each, kind):
            shown = each.__name__ if isinstance(each, type) else f"{type(each).__name__} {each!r:.60}"
            hint = " (a class: make an object of it first)" if isinstance(each, type) else ""
            raise UsageError(
                f"vramkit.profile was given a {word}",
                f"{shown}{hint}",
                f"that is not {wanted}",
                f"Pass {wanted}, a sequence or a dict of them; or none, and what runs is found",
            )
        checked[name] = each
    return checked


def _unique(each: object, taken: Mapping[str, object]) -> str:
    name, number = type(each).__name__, 1
    while (unique := name if number == 1 else f"{name}#{number}") in taken:
        number += 1
    return unique


def _device_type(device: str | torch.device | None, models: Mapping[str, torch.nn.Module]) -> str:
    if device is not None:
        try:
            kind = torch.device(device).type
        except (RuntimeError, TypeError) as error:
            kind = f"{device!r}"
            cause: Exception | None = error
        else:
            cause = None
        if kind not in ("cuda", "cpu"):
            raise UsageError(
                "vramkit.profile was given a device",
                f"{kind}",
                "only CUDA devices and the CPU can be measured",
                'Pass device="cuda" or device="cpu", or leave it out',
            ) from cause
        return kind
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
        return "cuda"
    if models:
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


def _source(device: str, max_events: int) -> _Source:
    if device == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(
                "vramkit.profile was to measure CUDA memory",
                "torch finds no CUDA device",
                instead='Switch the virtual GPU on before importing torch (vramkit.virtual_gpu.activate("a100-40gb"), '
                'or `vramkit run --gpu a100-40gb script.py`), or pass device="cpu"',
            )
        from .recording.cuda import CudaHistory

        return CudaHistory(max_events)
    from .recording.dispatch import StorageLifetimes

    return StorageLifetimes(max_events)


def _settle(recordings: Sequence[Recording], marks: Marks, device: str) -> Profile:
    modules = marks.modules.described()
    versions = {"torch": torch.__version__, "vramkit": __version__, "python": sys.version.split()[0]}
    profiles = [
        Profile(
            tape=attribute(recording, marks.entries, marks.scans, modules),
            device_name=torch.cuda.get_device_name(recording.device) if device == "cuda" else "",
            capacity=recording.capacity,
            outside=recording.outside,
            versions=versions,
            notes=tuple(recording.notes),
        )
        for recording in recordings
    ]
    if not profiles:
        empty = Tape(events=np.zeros(0, EVENT), allocations=np.zeros(0, ALLOCATION), device="cuda:0")
        return Profile(tape=empty, versions=versions, notes=("Nothing used the device inside the block.",))
    profiles.sort(key=lambda each: -each.peak_reserved)
    first, *others = profiles
    return replace(first, others=tuple(others))


def _add_note(error: BaseException, note: str) -> None:
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:  # Python 3.10 prints no notes, but tools read them
        setattr(error, "__notes__", [*getattr(error, "__notes__", []), note])  # noqa: B010 - unknown to its type
