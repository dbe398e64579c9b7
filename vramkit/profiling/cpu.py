"""The measured source on the CPU: lifetimes of storages under a dispatch mode. Knows tensors; no allocator.

Every operator passes through Python here, so a step is slower than without it (on CUDA the allocator's own history is
used instead), and ``torch.compile`` compiles nothing while any dispatch mode is on. What an operator takes and gives
back inside its kernel is not seen.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..attribution.recording import NO_MODULE, Before, Recording
from ..tape.events import Action
from .marks import Marks

_ALLOC, _FREE = int(Action.ALLOC), int(Action.FREE)


class StorageLifetimes(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's
    """Records the storages of one kind of device from ``start()`` to ``stop()``.

    Args:
        max_events: how many of the last events to keep, at least; up to twice as many are held meanwhile.
        device: type of the device, "cpu".
    """

    def __init__(self, max_events: int, device: str = "cpu") -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's
        self.marks = Marks(self._place, self._locate)
        self._device = device
        self._max_events = max_events
        self._events: list[tuple[int, int, int, int, bool]] = []  # action, storage, bytes, mark, was there before
        self._dropped = self._ours = 0
        self._before: dict[int, int] = {}  # storage -> bytes, of what was alive before the first kept event
        self._alive: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}
        self._positions = [0]
        self._recording = False
        self._lock = threading.RLock()  # storages die in any thread, and also while this one holds the lock

    def start(self) -> None:
        """Begin to record: what the marks know already is there before the first event."""
        self._recording = True
        self.__enter__()  # type: ignore[no-untyped-call] # torch's
        try:
            self.marks.install()
        except BaseException:
            self.marks.abandon()
            self._end()
            raise
        self._drop(len(self._events))
        self._ours = self._dropped  # events that only say what was there

    def stop(self) -> list[Recording]:
        """Detach everything and hand over what was recorded."""
        try:
            self.marks.remove()
        finally:
            self._end()
        lost = self._dropped - self._ours
        if len(self._events) > self._max_events:
            lost += len(self._events) - self._max_events
            self._drop(len(self._events) - self._max_events)
        notes = []
        if lost:
            notes.append(
                f"{lost:,} allocations and frees came before the last {len(self._events):,} and were not kept: the "
                "profile covers what came after. Raise max_events, or profile fewer steps."
            )
        position = np.array(self._positions[: len(self.marks.kept) + 1], np.int64) - self._dropped
        columns = np.array(self._events, np.int64).reshape(-1, 5)
        action, storage, size, mark, foreign = columns.T
        return [
            Recording(
                device=self._device,
                action=action.astype(np.uint8),
                address=storage,
                size=size,
                stream=np.zeros(len(columns), np.int64),
                time=np.arange(len(columns)),
                block=np.where(action == _ALLOC, size, 0),
                mark=mark,
                at_module=np.full(len(columns), NO_MODULE, np.int32),
                position=np.where(position >= 0, position, -1 if lost else 0),
                before=[Before(address=storage, block=size, requested=size) for storage, size in self._before.items()],
                foreign=foreign.astype(bool),
                lost=lost,
                notes=notes,
            )
        ]

    def _end(self) -> None:
        self._recording = False
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call] # torch's
        self._alive.clear()  # and with it the callbacks

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._see(args, foreign=True)
        result = func(*args, **(kwargs or {}))
        self._see(result, foreign=False)
        return result

    def _see(self, value: Any, *, foreign: bool) -> None:
        if isinstance(value, torch.Tensor):
            if value.device.type == self._device:
                self._meet(value, foreign=foreign)
        elif isinstance(value, (tuple, list)):
            for item in value:
                self._see(item, foreign=foreign)

    def _meet(self, tensor: torch.Tensor, *, foreign: bool) -> int:
        """Note a storage that was not seen before; returns what stands for its address."""
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # a sparse tensor or a wrapper: it has none
            return 0
        key: int = storage._cdata
        known = self._alive.get(key)
        if known is None or known[0]() is not storage:
            size = storage.nbytes()
            with self._lock:
                self._note(_ALLOC, key, size, foreign)
                self._alive[key] = (weakref.ref(storage, lambda ref: self._died(key, ref)), size)
        return key

    def _died(self, key: int, ref: weakref.ref[torch.UntypedStorage]) -> None:
        with self._lock:
            known = self._alive.get(key)
            if known is not None and known[0] is ref:
                del self._alive[key]
                self._note(_FREE, key, known[1], False)

    def _note(self, action: int, storage: int, size: int, foreign: bool) -> None:
        self._events.append((action, storage, size, len(self.marks.entries), foreign))
        if len(self._events) >= 2 * self._max_events:
            self._drop(self._max_events)

    def _drop(self, count: int) -> None:
        """Forget the oldest events; what they left alive was there before the first that is kept."""
        for action, storage, size, _, _ in self._events[:count]:
            if action == _ALLOC:
                self._before[storage] = size
            else:
                self._before.pop(storage, None)
        del self._events[:count]
        self._dropped += count

    def _place(self, _number: str) -> None:
        self._positions.append(self._dropped + len(self._events))

    def _locate(self, tensor: torch.Tensor) -> int:
        return self._meet(tensor, foreign=True) if tensor.device.type == self._device else 0
