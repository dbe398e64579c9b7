"""What a source hands over: one device's raw events and the marks laid down beside them. Knows no torch."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..allocator import NO_POOL, PoolId
from ..gpus.nccl import NCCL
from ..tape.events import SEGMENT, Category, Ints, Table
from ..tape.stacks import StackTree
from ..torch_releases import TieBreak


class Kind(enum.IntEnum):
    """What a mark says."""

    ROOT = 0
    """The forward of an outermost module begins; value: the module."""
    ROOT_END = 1
    """The forward of an outermost module has ended, or was left by an exception; value: the module."""
    IN = 2
    """The program is in this module's forward: it entered it, or is back from a module inside; value: the module."""
    GRAPH = 3
    """The outermost forward that has just ended made an autograd graph; value: the module."""
    BACKWARD = 4
    """``backward()`` begins; value: the sum of ``CREATES_GRAPH`` and ``ACCUMULATES``, where they hold."""
    BACKWARD_END = 5
    """``backward()`` has ended; value: ``FOLLOWED`` if its modules are known, else 0."""
    BACKWARD_AT = 6
    """The backward reaches what a module's forward did; value: the module, or -1 for what lies between modules."""
    OPTIMIZER = 7
    """``optimizer.step()`` begins; value: the optimizer."""
    OPTIMIZER_END = 8
    """``optimizer.step()`` has ended; value: the optimizer, or -1 for a step that raised, some time before."""
    STEP = 9
    """The user says that a training step has ended."""
    SCAN = 10
    """Tensors were looked at; value: index into ``Marks.scans``."""
    MODE = 11
    """How the outermost forward that has just begun runs; value: the sum of ``NO_GRAD``, ``EVALUATES`` and ``SOURCE``,
    where they hold. Without it: with gradients, in training mode, and given what may be part of a graph."""
    LEFT = 12
    """The outermost forward that has just ended was left by an exception; value: the module."""
    MEASURES = 13
    """``torch.compile`` begins to compile, or to measure variants of a kernel; value: 1, and 0 where it has ended."""
    CLEARS = 14
    """cuBLAS's workspaces are given back; value: 1, and 0 where it is done."""


# One mark: its kind, its value, and the line of the program that it belongs to. A line is what one thread does, and the
# autograd threads for it; they are numbered from 0. A mark's number is its position in the list plus one; number 0 is
# "before any mark". A plain tuple, because making one is on the path of every module call.
Mark = tuple[Kind, int, int]

CREATES_GRAPH = 1
"""This backward builds a graph itself (``create_graph=True``)."""
ACCUMULATES = 2
"""Gradients of an earlier backward are still there when this one begins."""
FOLLOWED = 1
"""All forwards that this backward went through were followed module by module."""
NO_GRAD = 1
"""Gradients are off."""
EVALUATES = 2
"""The module is in evaluation mode (``eval()``)."""
SOURCE = 4
"""Of what it is given nothing is part of a graph."""
NO_MODULE = -2
"""In ``Recording.at_module``: the source noted no module, the marks decide."""


@dataclass(frozen=True)
class Scan:
    """Where some tensors lay at one moment."""

    category: Category | None
    """What they are; None: the program's variables hold them, and their look does not tell."""
    addresses: list[int]
    """One address a tensor, in the source's own terms; 0 for none."""
    names: Sequence[str]
    """One name a tensor, in the same order, empty for one without; they all have none where there is none."""
    parts: Sequence[tuple[int, int]] = ()
    """Of inputs: at which byte of its storage each tensor begins, and how many bytes it has."""
    is_idle: bool = False
    """Whether they are of a model that a variable holds and that has not run by now, and may never."""
    is_of_model: bool = False
    """Whether a copy's names are those of the model that it is, and not of the variable that holds it."""

    def says(self, addresses: list[int], names: Sequence[str], parts: Sequence[tuple[int, int]]) -> bool:
        """Whether another look of the same category would say the same."""
        return self.addresses == addresses and self.names is names and self.parts == parts


@dataclass(frozen=True, kw_only=True)
class Before:
    """A block that was alive before the first event."""

    address: int
    block: int
    """Bytes of the block."""
    requested: int
    """Bytes that the program had asked for."""
    stream: int = 0
    pool: PoolId = NO_POOL
    stack: int = -1
    """A row of ``Recording.stacks``; -1: not known."""
    operator: str = ""
    """The operator that made it; empty: not known."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Raw events of one device. All arrays have one item an event, in the order in which the events happened."""

    device: str
    action: npt.NDArray[np.uint8]
    """Codes of ``vramkit.tape.events.Action``."""
    address: Ints
    size: Ints
    """Bytes: as requested by ALLOC, FREE, FREE_COMPLETED and OOM; of the segment otherwise."""
    stream: Ints
    time: Ints
    """Microseconds on any clock."""
    block: Ints
    """Bytes of the block that an ALLOC handed out; 0 elsewhere."""
    mark: Ints
    """Number of the mark that holds for each event."""
    line: Ints | None = None
    """Line of the program that each event belongs to; None: that of its mark."""
    at_module: npt.NDArray[np.int32]
    """Module that the backward was at, where the source notes that by itself; else ``NO_MODULE``."""
    position: Ints
    """Of each mark, from number 0 on: index of the first event after it, -1 where what followed it was lost; shape
    ``(marks + 1,)``."""
    pool: Ints | None = None
    """torch's id of the private pool that each event is of, 0, 0 for none; shape ``(events, 2)``. None: all of none."""
    before: Sequence[Before] = ()
    stacks: StackTree | None = None
    """Where in the program allocations were made; None: nobody looked."""
    stack: Ints | None = None
    """Of each ALLOC a row of ``stacks``, -1 where it is not known."""
    operator: Sequence[str] = ()
    """Of each event the operator that made an ALLOC, ``"aten::mm"``, empty where it is not known; or nothing at all."""
    foreign: npt.NDArray[np.bool_] | None = None
    """Whether an ALLOC is only the first sight of something that was made before or elsewhere; None: none is."""
    segments: Table = field(default_factory=lambda: np.zeros(0, SEGMENT))
    """dtype ``SEGMENT``: what the allocator held before the first event."""
    alloc_conf: str = ""
    tie_break: TieBreak = "age"
    """Which of equally large free blocks the allocator took."""
    workspace_sizes: frozenset[int] = frozenset()
    """Bytes that a library asks for as its workspace."""
    outside: int = 0
    """Bytes in use on the device that are not this allocator's, at the end; 0: unknown."""
    nccl: NCCL | None = None
    """NCCL's communicators on the device, at the end; None: there are none."""
    capacity: int = 0
    """Bytes of the device; 0: unknown."""
    lost: int = 0
    """Allocations and frees before the first event that the source could not keep."""
    notes: Sequence[str] = ()
