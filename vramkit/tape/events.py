"""The tape: what happened to one device's memory, in order. Knows no torch and not where the events came from.

A tape has three tables, each one numpy structured array:

* ``events``: every allocation, free and segment change, in the order in which the allocator made them;
* ``allocations``: a row for every allocation that lived during the tape, with what it turned out to be;
* ``segments``: the segments that the allocator held before the first event.

Beside them ``passes``: each forward, backward and optimizer step, also one in which nothing was allocated.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..torch_releases import TieBreak
from .stacks import Stacks


class Category(enum.IntEnum):
    """What an allocation is for. The values index the columns of every table by category."""

    PARAMETER = 0
    """A parameter of a model."""
    BUFFER = 1
    """A buffer of a module, such as batch norm's running mean."""
    GRADIENT = 2
    """The gradient of a parameter, from its first partial sum on."""
    OPTIMIZER_STATE = 3
    """What an optimizer keeps from one step to the next."""
    INPUT = 4
    """What the batch brought to the device, targets included."""
    ACTIVATION = 5
    """Allocated in a forward and still alive when that forward has ended: outputs, and what the backward needs."""
    TEMPORARY = 6
    """Born and gone inside one phase, gradients of activations included."""
    WORKSPACE = 7
    """Held by cuBLAS for its products; no tensor owns it."""
    OTHER = 8
    """Everything else: there before the recording began, or the program's own."""
    MODEL_COPY = 9
    """Of a copy of a model or of an optimizer's state that no step trains: averaged weights, a state dict, a teacher of
    the same shape, a loaded checkpoint."""
    DATASET = 10
    """Data of which a step uses a part: a data set that lies on the device."""
    OUTPUT = 11
    """What a model returned, or a layer of it, and the program keeps beyond the step: predictions, features."""
    GATHERED = 12
    """A whole parameter, gathered for a while from the shards that several ranks have."""
    COMMUNICATION = 13
    """What a collective reads or writes and is nothing else: buckets, buffers of all-gather and reduce-scatter."""


class Phase(enum.IntEnum):
    """Where in a training step the program is."""

    OUTSIDE = 0
    """Neither of the others: data loading, logging, gradient clipping."""
    FORWARD = 1
    """The forward of a model, and the loss that follows it."""
    BACKWARD = 2
    """Inside ``backward()``."""
    OPTIMIZER = 3
    """Inside ``optimizer.step()``."""
    RECOMPUTE = 4
    """A forward that a checkpoint runs again during the backward."""
    EVALUATION = 5
    """A forward that no backward follows, without gradients or in evaluation mode, and what follows up to the next
    forward: no part of a training step."""


class Action(enum.IntEnum):
    """What an event did."""

    ALLOC = 0
    """A block was handed out: ``allocated`` grows by the block."""
    FREE = 1
    """The owner gave it back (torch's ``free_requested``): ``allocated`` shrinks by the block."""
    FREE_COMPLETED = 2
    """The block can be used again; later than FREE where another stream still used it."""
    SEGMENT_ALLOC = 3
    """A segment came from the driver: ``reserved`` grows."""
    SEGMENT_FREE = 4
    """A segment went back to the driver: ``reserved`` shrinks."""
    SEGMENT_MAP = 5
    """Pages of an expandable segment were mapped: ``reserved`` grows."""
    SEGMENT_UNMAP = 6
    """Pages of an expandable segment were unmapped: ``reserved`` shrinks."""
    OOM = 7
    """An allocation failed; nothing changed."""


TORCH_ACTIONS = {
    "alloc": Action.ALLOC,
    "free_requested": Action.FREE,
    "free_completed": Action.FREE_COMPLETED,
    "segment_alloc": Action.SEGMENT_ALLOC,
    "segment_free": Action.SEGMENT_FREE,
    "segment_map": Action.SEGMENT_MAP,
    "segment_unmap": Action.SEGMENT_UNMAP,
    "oom": Action.OOM,
}
"""torch's names in a trace; it has others, of things that change no memory."""

EVENT = np.dtype(
    [
        ("action", "u1"),  # Action
        ("phase", "u1"),  # Phase
        ("module", "i4"),  # index into Tape.modules, -1: none
        ("step", "i4"),  # training step, from 0
        ("allocation", "i4"),  # row of Tape.allocations, -1 for segments and OOM
        ("size", "i8"),  # bytes: as requested for ALLOC, FREE, FREE_COMPLETED and OOM; of the segment otherwise
        ("address", "i8"),  # 0 where the source has none; of OOM what the device had free, in bytes
        ("stream", "i8"),
        ("time", "i8"),  # microseconds since the tape's first event
        ("pool", "i4", (2,)),  # torch's id of the private pool (a MemPool's, a CUDA graph's); 0, 0: none
    ]
)
ALLOCATION = np.dtype(
    [
        ("category", "u1"),  # Category
        ("phase", "u1"),  # Phase at birth
        ("module", "i4"),  # module at birth: index into Tape.modules, -1: none
        ("step", "i4"),  # training step at birth
        ("born", "i8"),  # index of its ALLOC event, -1: before the tape began
        ("died", "i8"),  # index of its FREE event, -1: alive at the end
        ("requested", "i8"),  # bytes the program asked for
        ("block", "i8"),  # bytes the allocator gave: what memory_allocated() counts
        ("address", "i8"),
        ("stream", "i8"),
        ("name", "i4"),  # index into Tape.names, -1: none
        ("pool", "i4", (2,)),  # as of EVENT
        ("forward", "i4"),  # which of Tape.forwards had begun last when it was made, from 1; 0: none had
        ("operator", "i4"),  # which of Tape.operators made it, from 1; 0: not known
    ]
)
SEGMENT = np.dtype(
    [
        ("address", "i8"),
        ("size", "i8"),  # bytes
        ("stream", "i8"),
        ("small", "?"),  # of the pool for requests of up to 1 MiB
        ("expandable", "?"),
        ("pool", "i4", (2,)),  # as of EVENT
    ]
)
PASS = np.dtype(
    [
        ("phase", "u1"),  # Phase: FORWARD, EVALUATION, BACKWARD or OPTIMIZER
        ("module", "i4"),  # of a forward the outermost module, -1: none
        ("step", "i4"),  # training step
        ("begin", "i8"),  # index of the first event at or after its beginning
        ("end", "i8"),  # index of the first event after its end; of one that came to none the number of events
        ("has_grad", "?"),  # a forward for which gradients were on
        ("made_graph", "?"),  # a forward whose output is part of an autograd graph
        ("was_left", "?"),  # a forward that an exception left
        ("is_source", "?"),  # a forward, with gradients on, that was given no tensor of a graph; False: not known
        ("optimizer", "i4"),  # of an optimizer's step its number in Tape.optimizers, from 1; 0: not known
    ]
)

Ints = npt.NDArray[np.int64]
Table = npt.NDArray[np.void]

OF_MEASURING = "torch.compile's own"
"""The name of what ``torch.compile`` took while it compiled, or measured variants of a kernel, and then gave back."""
OF_A_CONTEXT = "'s ctx"
"""How the name of a container ends that is what a custom function sets on its ``ctx``: "Swish's ctx"."""

_RESERVED_SIGN = np.zeros(len(Action), np.int64)
_RESERVED_SIGN[[Action.SEGMENT_ALLOC, Action.SEGMENT_MAP]] = 1
_RESERVED_SIGN[[Action.SEGMENT_FREE, Action.SEGMENT_UNMAP]] = -1


def _empty(dtype: np.dtype[Any]) -> Table:
    return np.zeros(0, dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A module that a tape's columns ``module`` point to."""

    name: str
    """Qualified: the model's own name, then the path below it, ``"GPT.blocks.0.attention"``."""
    kind: str
    """Name of the class."""
    parent: int = -1
    """Index of the module it is part of, which comes before it; -1: it is a model of its own."""
    parameters: int = 0
    """Bytes of its own parameters, without those of the modules in it; a shared one counts where it is met first."""
    numel: int = 0
    """How many numbers these are; 0: not known."""
    calls: int = 0
    """How often its forward ran, recomputations included."""
    output_shape: tuple[int, ...] = ()
    """Shape of the first tensor that its first call returned."""

    @property
    def item_size(self) -> int:
        """Bytes of each number of its own parameters; 0: not known, or they are not all of one size."""
        return self.parameters // self.numel if self.numel and self.parameters % self.numel == 0 else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What one model did in evaluation."""

    module: int
    """Index of the model."""
    forwards: int
    with_graph: int = 0
    """How many of them made an autograd graph, which nothing used."""


@dataclass(frozen=True, kw_only=True)
class Tape:
    """An ordered list of everything that happened to one device's memory.

    Every reader of vramkit (attribution, simulator, reports) takes a tape; none can tell which source made it.
    """

    events: Table
    """dtype ``EVENT``, one row an event, in the allocator's order."""
    allocations: Table
    """dtype ``ALLOCATION``, one row an allocation: first those alive at the start, then in order of birth."""
    segments: Table = field(default_factory=lambda: _empty(SEGMENT))
    """dtype ``SEGMENT``: what the allocator held before the first event."""
    passes: Table = field(default_factory=lambda: _empty(PASS))
    """dtype ``PASS``: every outermost forward, backward and optimizer step, in the order in which they began; empty
    where nobody looked."""
    modules: tuple[Module, ...] = ()
    """What the columns ``module`` index."""
    names: tuple[str, ...] = ()
    """Names of parameters, gradients and states; the column ``name`` indexes this."""
    operators: tuple[str, ...] = ()
    """What the column ``operator`` numbers from 1: ``"aten::mm"``, in a backward ``"aten::mm (MmBackward0)"``."""
    evaluations: tuple[Evaluation, ...] = ()
    """One for each model that was evaluated; what came of it are the events and allocations of `Phase.EVALUATION`."""
    optimizers: tuple[frozenset[str], ...] = ()
    """Of each optimizer that stepped the names of its parameters, as far as they are known."""
    device: str = "cuda:0"
    """The device, in torch's words."""
    alloc_conf: str = ""
    """``PYTORCH_CUDA_ALLOC_CONF`` during the recording."""
    stacks: Stacks | None = None
    """Where in the program each allocation was made; None: nobody looked."""
    tie_break: TieBreak = "age"
    """Which of equally large free blocks the allocator took; see `vramkit.CachingAllocator`."""
    knows_phases: bool = True
    """Whether the columns ``step`` and ``phase`` of the events were looked for; in a snapshot that torch wrote nobody
    did, and only the ``phase`` of an allocation may be known, from its stack."""
    is_window: bool = False
    """Whether something came before the first event that nobody kept: the highest here need not be the highest ever."""

    def __repr__(self) -> str:
        return f"Tape({len(self.events):,} events, {len(self.allocations):,} allocations on {self.device})"

    @cached_property
    def initial_allocated(self) -> int:
        """Bytes in blocks that were alive before the first event."""
        before = self.allocations["born"] < 0
        return int(self.allocations["block"][before].sum())

    @cached_property
    def initial_reserved(self) -> int:
        """Bytes in segments before the first event."""
        if self.device == "cpu":
            return self.initial_allocated
        return int(self.segments["size"].sum())

    @cached_property
    def trains(self) -> bool:
        """Whether anything is part of a training step: a forward that is no evaluation will do."""
        return bool((~np.isin(self.events["phase"], (Phase.OUTSIDE, Phase.EVALUATION))).any())

    @cached_property
    def forwards(self) -> Table:
        """The forwards among the passes; the column ``forward`` numbers them from 1."""
        return self.passes[np.isin(self.passes["phase"], (Phase.FORWARD, Phase.EVALUATION))]

    @cached_property
    def deltas(self) -> Ints:
        """Change of ``allocated`` at each event, in block bytes; shape ``(events,)``."""
        return self._signed("block")

    @cached_property
    def requested_deltas(self) -> Ints:
        """Change of the bytes that the program asked for at each event; shape ``(events,)``."""
        return self._signed("requested")

    def _signed(self, column: str, rows: Table | None = None) -> Ints:
        result = np.zeros(len(self.events), np.int64)
        table = self.allocations if rows is None else rows
        born, died = table["born"], table["died"]
        alive = born >= 0
        result[born[alive]] += table[column][alive]
        dead = died >= 0
        result[died[dead]] -= table[column][dead]
        return result

    @cached_property
    def allocated(self) -> Ints:
        """``memory_allocated()`` after each event, in bytes; shape ``(events,)``."""
        return self.initial_allocated + np.cumsum(self.deltas)

    @cached_property
    def reserved(self) -> Ints:
        """``memory_reserved()`` after each event, in bytes; shape ``(events,)``. The CPU reserves what it allocates."""
        if self.device == "cpu":
            return self.allocated
        return self.initial_reserved + np.cumsum(_RESERVED_SIGN[self.events["action"]] * self.events["size"])

    @cached_property
    def has_graph_pools(self) -> bool:
        """Whether anything was ever reserved in a private pool: of CUDA graphs, or a ``torch.cuda.MemPool``."""
        return bool(self.events["pool"].any() or self.segments["pool"].any() or self.allocations["pool"].any())

    @cached_property
    def graph_pools(self) -> Ints:
        """Bytes that private pools hold and no allocation has, in each moment; shape ``(events + 1,)``.

        Row 0 is before the first event. They are reserved, and free to nobody else: the replays of a CUDA graph write
        to them, whatever the allocator knows of it.
        """
        result = np.zeros(len(self.events) + 1, np.int64)
        if self.has_graph_pools and self.device != "cpu":
            held = self.allocations[self.allocations["pool"].any(axis=1)]
            before = self.segments["size"][self.segments["pool"].any(axis=1)].sum()
            result[0] = before - held["block"][held["born"] < 0].sum()
            reserved = _RESERVED_SIGN[self.events["action"]] * self.events["size"] * self.events["pool"].any(axis=1)
            result[1:] = reserved - self._signed("block", held)
            np.cumsum(result, out=result)
        return np.maximum(result, 0)

    @cached_property
    def flushes(self) -> npt.NDArray[np.bool_]:
        """Which events begin an unbroken run of segments of one pool that go back; shape ``(events,)``."""
        pool = self.events["pool"]
        first: npt.NDArray[np.bool_] = _RESERVED_SIGN[self.events["action"]] < 0
        goes_on = first[:-1] & (pool[1:] == pool[:-1]).all(axis=1)
        first[1:] &= ~goes_on
        return first

    @property
    def peak_allocated(self) -> int:
        """Highest ``memory_allocated()``, in bytes, the start included."""
        return max(self.initial_allocated, int(self.allocated.max(initial=0)))

    @property
    def peak_reserved(self) -> int:
        """Highest ``memory_reserved()``, in bytes, the start included."""
        return max(self.initial_reserved, int(self.reserved.max(initial=0)))

    @property
    def peak_event(self) -> int:
        """Index of the first event at which ``allocated`` was highest; -1: it was so before the first event."""
        if not len(self.events) or self.allocated.max() <= self.initial_allocated:
            return -1
        return int(self.allocated.argmax())

    @cached_property
    def lines(self) -> list[str | None]:
        """Of each allocation the line that made it, ``"train.py:42 in forward"``; None: not known."""
        if self.stacks is None:
            return [None] * len(self.allocations)
        texts = [*self.stacks.texts, None]  # -1 takes the last
        return [texts[line] for line in self.stacks.lines.tolist()]

    @cached_property
    def made_by(self) -> list[str | None]:
        """Of each allocation the operator that made it, ``"aten::mm"``; None: not known."""
        texts = [None, *self.operators]
        return [texts[operator] for operator in self.allocations["operator"].tolist()]

    def alive_at(self, event: int) -> npt.NDArray[np.bool_]:
        """Which allocations are alive just after an event; shape ``(allocations,)``. Event -1 is the start."""
        born, died = self.allocations["born"], self.allocations["died"]
        return (born <= event) & ((died < 0) | (died > event))
