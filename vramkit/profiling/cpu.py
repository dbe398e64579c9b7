"""The measured source on the CPU: lifetimes of storages under a dispatch mode. Knows tensors; no allocator.

Every operator passes through Python here, so a step is slower than without it (on CUDA the allocator's own history is
used instead), and ``torch.compile`` compiles nothing while any dispatch mode is on. What an operator takes and gives
back inside its kernel is not seen.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections import deque
from collections.abc import Iterable
from contextlib import ExitStack
from types import FrameType
from typing import Any

import numpy as np
import torch

from ..attribution.recording import NO_MODULE, Before, Recording
from ..tape.events import Action
from ..torch_internals.dispatch import TorchDispatchMode
from ..torch_internals.storages import key_of
from .hooks import Hooks
from .marks import Marks, padded
from .operators import operator_seen
from .python_stacks import PythonStacks

_LIFT = torch.ops.aten.lift_fresh.default


class _Ref(weakref.ref[torch.UntypedStorage]):
    """Tells which storage has died."""

    __slots__ = ("key",)
    key: int


class StorageLifetimes(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's
    """Records the storages of one kind of device.

    Args:
        max_events: how many of the last events to keep, at least; up to twice as many are held meanwhile.
        device: type of the device, "cpu".
        stacks: where in the program each storage was made is recorded, too.
    """

    def __init__(self, max_events: int, device: str = "cpu", *, stacks: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's
        self.marks = Marks(self._place)
        self.hooks = Hooks(self.marks, self._locate, locate_held=self._locate_known, notes_lines=stacks)
        self._stacks = PythonStacks() if stacks else None
        self._device = device
        self._max_events = max_events
        # Of each: action, storage, bytes, mark, line, whether it was there before, its stack, and its operator.
        self._events: list[tuple[Action, int, int, int, int, bool, int, int]] = []
        self._operators = {"": 0}
        self._dropped = self._ours = 0
        # Of each storage that was alive before the first kept event its bytes, its stack and its operator.
        self._before: dict[int, tuple[int, int, int]] = {}
        self._alive: dict[int, tuple[_Ref, int]] = {}
        # Storages die in any thread and in the middle of anything: a callback in C is all that may run then.
        self._dead: deque[_Ref] = deque()
        self._positions = [0]
        self._lock = threading.RLock()  # other threads look at what they train

    def start(self, stack: ExitStack) -> None:
        """Begin to record: what the marks know already is there before the first event.

        Args:
            stack: ends the recording when it is left, and detaches everything.
        """
        stack.callback(self._alive.clear)  # and with it the callbacks
        stack.enter_context(self)
        self.hooks.install(stack)
        with self._lock:
            self._note_deaths(0)
            self._drop(len(self._events))
            self._ours = self._dropped  # events that only say what was there

    def stop(self, error: BaseException | None = None) -> None:
        """Look for the last time, before the stack detaches everything.

        Args:
            error: ended the program.
        """
        self.hooks.finish(error)
        with self._lock:
            self._note_deaths(len(self.marks.entries))

    def recordings(self) -> list[Recording]:
        """What was recorded; to be called once the recording has ended."""
        with self._lock:
            lost = self._dropped - self._ours
            if len(self._events) > self._max_events:
                lost += len(self._events) - self._max_events
                self._drop(len(self._events) - self._max_events)
            columns = np.array(self._events, np.int64).reshape(-1, 8)
            position = np.array(padded(self._positions, len(self.marks.kept) + 1), np.int64) - self._dropped
        notes = []
        if lost:
            notes.append(
                f"{lost:,} allocations and frees came before the last {len(columns):,} and were not kept: the "
                "profile covers what came after. Raise max_events, or profile fewer steps."
            )
        action, storage, size, mark, line, foreign, stack, operator = columns.T
        operators = [*self._operators]
        return [
            Recording(
                device=self._device,
                action=action.astype(np.uint8),
                address=storage,
                size=size,
                stream=np.zeros(len(columns), np.int64),
                time=np.arange(len(columns)),
                block=np.where(action == Action.ALLOC, size, 0),
                mark=mark,
                line=line,
                at_module=np.full(len(columns), NO_MODULE, np.int32),
                position=np.where(position >= 0, position, -1 if lost else 0),
                before=[
                    Before(address=storage, block=size, requested=size, stack=stack, operator=operators[operator])
                    for storage, (size, stack, operator) in self._before.items()
                ],
                stacks=None if self._stacks is None else self._stacks.tree,
                stack=stack,
                operator=[operators[each] for each in operator.tolist()],
                foreign=foreign.astype(bool),
                lost=lost,
                notes=notes,
            )
        ]

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # What torch.tensor() made is seen first as what this operator takes.
        self._see(args, foreign=True, is_made=func is _LIFT)
        result = func(*args, **(kwargs or {}))
        self._see(result, foreign=False, is_made=True, func=func)
        return result

    def _see(self, value: Any, *, foreign: bool, is_made: bool, func: Any = None) -> None:
        if isinstance(value, torch.Tensor):
            if value.device.type == self._device:
                self._meet(value, foreign=foreign, is_made=is_made, func=func)
        elif isinstance(value, (tuple, list)):
            for item in value:
                self._see(item, foreign=foreign, is_made=is_made, func=func)

    def _meet(self, tensor: torch.Tensor, *, foreign: bool, is_made: bool = False, func: Any = None) -> int:
        """Note a storage that was not seen before; returns what stands for its address.

        Args:
            tensor: that has it.
            foreign: it was made before or elsewhere, as far as its category goes.
            is_made: the program's present line makes it.
            func: the operator that gives it back.
        """
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # a sparse tensor or a wrapper: it has none
            return 0
        key = key_of(storage)
        known = self._alive.get(key)
        if known is None or known[0]() is not storage:
            size = storage.nbytes()
            with self._lock:
                marks = len(self.marks.entries)
                self._note_deaths(marks)
                if key not in self._alive:  # else another thread has met it meanwhile
                    line, stack, frame = self.marks.lines.number(), -1, inspect.currentframe()
                    if self._stacks is not None and is_made:
                        stack = self._stacks.row(frame)
                    operator = self._operator(func, frame) if func is not None else 0
                    del frame  # a cycle
                    self._note(Action.ALLOC, key, size, marks, line, foreign=foreign, stack=stack, operator=operator)
                    ref = _Ref(storage, self._dead.append)
                    ref.key = key
                    self._alive[key] = ref, size
        return key

    def _operator(self, func: Any, frame: FrameType | None) -> int:
        """A number for an operator; below a frame of this file."""
        while frame is not None and frame.f_globals.get("__name__") == __name__:
            frame = frame.f_back
        return self._operators.setdefault(operator_seen(func, frame), len(self._operators))

    def _note_deaths(self, marks: int) -> None:
        """Note the storages that have died since the last event or mark; so many marks had been laid down then."""
        while self._dead:
            ref = self._dead.popleft()
            known = self._alive.get(ref.key)
            if known is not None and known[0] is ref:
                del self._alive[ref.key]
                self._note(Action.FREE, ref.key, known[1], marks, 0, foreign=False)

    def _note(
        self,
        action: Action,
        storage: int,
        size: int,
        marks: int,
        line: int,
        *,
        foreign: bool,
        stack: int = -1,
        operator: int = 0,
    ) -> None:
        self._events.append((action, storage, size, marks, line, foreign, stack, operator))
        if len(self._events) >= 2 * self._max_events:
            self._drop(self._max_events)

    def _drop(self, count: int) -> None:
        """Forget the oldest events; what they left alive was there before the first that is kept."""
        for action, storage, size, *_, stack, operator in self._events[:count]:
            if action is Action.ALLOC:
                self._before[storage] = size, stack, operator
            else:
                self._before.pop(storage, None)
        del self._events[:count]
        self._dropped += count

    def _place(self, number: str) -> None:
        with self._lock:
            self._note_deaths(int(number.rpartition(":")[2]) - 1)
            self._positions.append(self._dropped + len(self._events))

    def _locate(self, tensor: torch.Tensor) -> int:
        return self._meet(tensor, foreign=True) if tensor.device.type == self._device else 0

    def _locate_known(self, tensor: torch.Tensor) -> int:
        """As `_locate`; 0 for what no operator and no model has shown: it is none of what is recorded."""
        key = key_of(tensor.untyped_storage())
        return key if key in self._alive else 0
