"""One call of an operator on fake tensors, as a rule for its kernel sees it.

Knows what a rule may ask of the recorder. Its arguments a rule gets by their names (``arguments.py``).
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol

import torch

from ....allocator import Block
from ....gpus import CUBLASLT_WORKSPACE, GPU, cublas_workspace
from ....torch_internals.autograd import graph_task
from ....torch_internals.versions import BLAS_KEEPS_WORKSPACE, LT_KEEPS_WORKSPACE


class KernelRecorder(Protocol):
    """What a rule may ask of the recorder, by way of its `Call`."""

    @property
    def gpu(self) -> GPU:
        """The card, whose kernels are imitated."""

    def meet(self, tensor: torch.Tensor, size: int | None = None) -> None:
        """Give a tensor's storage a block, unless it has one."""

    def take(self, size: int) -> Block | None:
        """A block of the device. Raises: torch.OutOfMemoryError."""

    def give(self, block: Block | None) -> None:
        """Give a block back."""

    def assume(self, what: str, size: int) -> None:
        """Say in the prediction's notes what is only a bound."""

    def remark(self, note: str) -> None:
        """Say something in the prediction's notes."""

    def take_workspace(self, size: int, *, in_backward: bool) -> None:
        """Take a workspace that a library keeps, unless the thread's handle has one of that size."""


class Call:
    """An operator that has given its result, before anybody has counted the result's memory.

    A rule says in which order the kernel takes memory: its results by `output`, and what it needs beside them by
    `take` and `give`. Results that a rule does not name come after it, in their order.
    """

    def __init__(self, recorder: KernelRecorder, func: Any, result: Any) -> None:
        self._recorder = recorder
        self._func = func
        self.result = result

    @property
    def operator(self) -> Any:
        """The operator, without its overload."""
        return self._func.overloadpacket

    @property
    def gpu(self) -> GPU:
        """The card."""
        return self._recorder.gpu

    @property
    def in_backward(self) -> bool:
        """Whether the autograd thread runs it."""
        return graph_task() >= 0

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

    def holding(self, *sizes: int) -> _Holding:
        """Take memory, and give it back at the end of a ``with``, the last first."""
        return _Holding(self._recorder, sizes)

    def touch(self, *sizes: int) -> None:
        """Take memory and give it back at once."""
        for size in sizes:
            self.give(self.take(size))

    def touch_together(self, *sizes: int) -> None:
        """Take memory, and give it all back, the last first."""
        with self.holding(*sizes):
            pass

    def cublas_workspace(self) -> None:
        """Take cuBLAS's workspace: to keep, unless this thread's handle has it, or for this product alone."""
        if BLAS_KEEPS_WORKSPACE:
            self._recorder.take_workspace(cublas_workspace(self.gpu), in_backward=self.in_backward)
        else:
            self.touch(cublas_workspace(self.gpu))

    def cublaslt_workspace(self) -> None:
        """Take the workspaces of a product by cuBLASLt, where torch gives it one of its own."""
        if LT_KEEPS_WORKSPACE:
            self.cublas_workspace()
            self._recorder.take_workspace(CUBLASLT_WORKSPACE, in_backward=self.in_backward)
        else:
            with self.holding(CUBLASLT_WORKSPACE):
                self.cublas_workspace()

    def assume(self, what: str, size: int) -> None:
        """Say in the prediction's notes what is only a bound.

        Args:
            what: a sentence without its full stop.
            size: bytes that are in question in this call.
        """
        self._recorder.assume(what, size)

    def remark(self, note: str) -> None:
        """Say something in the prediction's notes, a sentence."""
        self._recorder.remark(note)


class _Holding:
    """A class, because every product has one, and ``contextlib.contextmanager`` takes three times as long."""

    __slots__ = ("_blocks", "_recorder", "_sizes")

    def __init__(self, recorder: KernelRecorder, sizes: tuple[int, ...]) -> None:
        self._recorder = recorder
        self._sizes = sizes
        self._blocks: list[Block | None] = []

    def __enter__(self) -> None:
        for size in self._sizes:
            self._blocks.append(self._recorder.take(size))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:  # out of memory: the program has ended, and its report shows what was held
            for block in reversed(self._blocks):
                self._recorder.give(block)
