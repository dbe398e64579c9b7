"""One call of an operator on fake tensors, as a rule for its kernel sees it.

Knows what can be told of it, and no rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ....torch_internals.autograd import graph_task

if TYPE_CHECKING:
    from ....allocator import Block
    from ....gpus import GPU
    from ..recorder import Recorder


class Call:
    """An operator that has given its result, before anybody has counted the result's memory.

    A rule says in which order the kernel takes memory: its results by `output`, and what it needs beside them by
    `take` and `give`. Results that a rule does not name come after it, in their order.
    """

    def __init__(self, recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._recorder = recorder
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.result = recorder.compute(func, args, kwargs)

    @property
    def gpu(self) -> GPU:
        """The card."""
        return self._recorder.gpu

    @property
    def in_backward(self) -> bool:
        """Whether the autograd thread runs it."""
        return graph_task() >= 0

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument, by its position or its name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def output(self, index: int = 0, size: int | None = None) -> None:
        """Take the memory of a result.

        Args:
            index: which one, of several.
            size: bytes; None: what the fake has.
        """
        value = self.result[index] if isinstance(self.result, (tuple, list)) else self.result
        if isinstance(value, torch.Tensor):
            self.meet(value, size)

    def meet(self, tensor: torch.Tensor, size: int | None = None) -> None:
        """As `output`, of a tensor in the result."""
        self._recorder.meet(tensor, size)

    def take(self, size: int) -> Block | None:
        """Take memory that is the kernel's own; who takes it gives it back."""
        return self._recorder.take(size)

    def give(self, *blocks: Block | None) -> None:
        """Give memory back that `take` took."""
        for block in blocks:
            self._recorder.give(block)

    @contextmanager
    def holding(self, *sizes: int) -> Iterator[None]:
        """Take memory, and give it back at the end, the last first."""
        blocks = [self.take(size) for size in sizes]
        yield
        self.give(*reversed(blocks))

    def touch(self, *sizes: int) -> None:
        """Take memory and give it back at once."""
        for size in sizes:
            self.give(self.take(size))

    def touch_together(self, *sizes: int) -> None:
        """Take memory, and give it all back."""
        with self.holding(*sizes):
            pass

    def assume(self, what: str, most: int) -> None:
        """Say in the prediction's notes what is only a bound.

        Args:
            what: a sentence without its full stop.
            most: bytes that are in question in this call.
        """
        notes = self._recorder.assumed
        notes[what] = max(notes.get(what, 0), most)

    def remark(self, note: str) -> None:
        """Say something in the prediction's notes, a sentence."""
        self._recorder.remark(note)

    def workspace(self, library: str, size: int) -> None:
        """Take a library's workspace, unless this thread's handle has it; it is kept."""
        key = library, self.in_backward
        if key not in self._recorder.workspaces:
            self._recorder.workspaces.add(key)
            self.take(size)
