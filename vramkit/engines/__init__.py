"""What can predict a program. This file knows what is asked of an engine and what it answers; no engine.

An engine opens a *session* for one program. A session runs the program on any card, at any batch size, as often as it
is asked, each time as a fresh process would; ``vramkit.estimate`` and ``Estimate`` know nothing else of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from ..gpus import GPU
    from ..programs.layer_count import LayerCounts, StepCount
    from ..programs.program import Rewrite
    from ..results.profile import Profile

EngineName = Literal["virtual", "fake"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run of a program came to."""

    ran_out: bool
    """It ended with ``torch.OutOfMemoryError``."""
    peak_allocated: int
    """``torch.cuda.max_memory_allocated()``, bytes."""
    peak_reserved: int
    """``torch.cuda.max_memory_reserved()``, bytes."""
    profile: Profile | None
    """The whole tape, where it was asked for."""
    compiled: bool = False
    """``torch.compile`` compiled a part of it."""
    measured_kernels: bool = False
    """``torch.compile`` measured kernels in it, whose buffers count; a later run finds what it has chosen."""
    notes: tuple[str, ...] = ()
    """What had to be assumed, in sentences."""
    layers: LayerCounts | None = None
    """What its layers are, where that was asked for."""
    step: StepCount | None = None
    """What a step does, where that was asked for."""


class Session(Protocol):
    """One program, ready to be run again and again."""

    @property
    def engine(self) -> EngineName: ...

    def run(self, gpu: GPU, batch_size: int, *, unlimited: bool = False, detailed: bool = True) -> Run:
        """Run the program as a fresh process would.

        Args:
            gpu: the card.
            batch_size: 0: the batch as it was given.
            unlimited: the card has as much memory as is needed, and is otherwise the same.
            detailed: whether the tape is wanted; figures alone take less time.

        Raises:
            UsageError: the program itself fails, other than by running out of memory; the cause is its traceback.
            DeviceError: it ended without an answer.
        """

    def count_layers(self, gpu: GPU, batch_size: int) -> LayerCounts:
        """Run one step of the program, and count what is in its layers. Arguments and errors as of ``run``."""

    def count_step(self, gpu: GPU, batch_size: int) -> StepCount:
        """Run two steps of the program, and count what the second one does. Arguments and errors as of ``run``."""

    def apart(self) -> Session:
        """The same program in processes of its own, so that both can run at the same time; itself, where the engine
        runs one at a time."""

    def rewritten(self, rewrite: Rewrite, alloc_conf: str | None = None) -> Session:
        """The same program with changes, which are made where it runs: nothing is sent again.

        Args:
            rewrite: the changes.
            alloc_conf: text of ``PYTORCH_CUDA_ALLOC_CONF``; None: this session's.
        """
