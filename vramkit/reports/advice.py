"""What would help most, computed from a profile by rules. Knows results; formats no tables.

A rule says which bytes a change would take away, and the tape says what that saves: the peak without those bytes,
wherever it then is. So a change that only moves the peak to another moment is credited with the difference and no
more. Each figure is for its change alone, and an upper bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..events import Category, Ints, Phase
from ..result import MemoryResult
from .moment import Moment
from .tree import merged_tree

_SEGMENTS = 32 << 20
"""Less than this is only the rest of a few segments of 2 and 20 MiB."""
_WORTH = 50
"""A change is mentioned if it could save at least one part in this many of what was allocated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One change to a program."""

    saves: int
    """Bytes of peak memory that it could save at most, made alone."""
    text: str
    """What to change, and why it saves, in a sentence."""
    of_reserved: bool = False
    """The bytes are of reserved memory, not of allocated memory."""


def advise(result: MemoryResult, moment: Moment, limit: int = 4) -> list[Advice]:
    """What would lower a peak, or let an allocation succeed that failed, most helpful first.

    Args:
        result: a profile or an estimate.
        moment: of it: the peak, or the failure.
        limit: how many, at most.
    """
    scene = _Scene(result, moment)
    found = [advice for rule in _RULES for advice in rule(scene)]
    least = max(1, moment.breakdown.allocated // _WORTH)
    return sorted((each for each in found if each.saves >= least), key=lambda each: -each.saves)[:limit]


@dataclass(frozen=True)
class _Scene:
    """A result and its moment, with what several rules ask of them."""

    result: MemoryResult
    moment: Moment

    @cached_property
    def category(self) -> npt.NDArray[np.uint8]:
        return self.result.tape.allocations["category"]

    @cached_property
    def block(self) -> Ints:
        """Bytes of each allocation's block."""
        return self.result.tape.allocations["block"].astype(np.int64)

    @cached_property
    def on_gpu(self) -> bool:
        return not self.result.device.startswith("cpu")

    def phases(self) -> set[Phase]:
        return {Phase(int(phase)) for phase in np.unique(self.result.tape.events["phase"])}

    def saved(self, weights: Ints) -> int:
        """Bytes saved if each allocation were smaller by its weight."""
        table = self.result.tape.allocations
        change = np.zeros(len(self.result.timeline), np.int64)
        np.add.at(change, table["born"] + 1, weights)
        dead = table["died"] >= 0
        np.add.at(change, table["died"][dead] + 1, -weights[dead])
        return self.saved_over_time(np.cumsum(change))

    def saved_over_time(self, less: Ints) -> int:
        """Bytes saved if so many were not there at each moment."""
        if self.moment.failed:
            return int(less[self.moment.event + 1])
        allocated = self.result.timeline.allocated
        return int(allocated.max() - (allocated - less).max())

    def at(self, mask: npt.NDArray[np.bool_]) -> int:
        """Bytes of some allocations that are alive at the moment."""
        return int(self.block[mask & self.moment.alive].sum())


# -- rules -------------------------------------------------------------------------------------------------------------


def _checkpoint(scene: _Scene) -> Iterator[Advice]:
    """Activation checkpointing of repeated blocks. Assumes that a block keeps its output and computes the rest again,
    one block at a time. Wrong where a block's output is not what the next one takes.
    """
    tape = scene.result.tape
    if Phase.RECOMPUTE in scene.phases() or Phase.BACKWARD not in scene.phases():
        return
    block_of, label = _repeated_blocks(scene)
    owner = np.append(block_of, -1)[tape.allocations["module"]]
    inside = (scene.category == Category.ACTIVATION) & (owner >= 0)
    weights = np.where(inside, scene.block, 0)
    rows = np.flatnonzero(inside)
    # What stays of each block in each step: one tensor of its output's size.
    key = owner[rows] * (int(tape.allocations["step"].max(initial=0)) + 1) + tape.allocations["step"][rows]
    for each in np.unique(key):
        group = rows[key == each]
        elements = int(np.prod(tape.modules[int(owner[group[0]])].output_shape, dtype=np.int64))
        for size in (4 * elements, 2 * elements):
            outputs = group[tape.allocations["requested"][group] == size]
            if len(outputs):
                weights[outputs[-1]] = 0
                break
    alive = rows[scene.moment.alive[rows]]
    again = int(np.bincount(owner[alive], weights=weights[alive]).max(initial=0)) if len(alive) else 0
    count = len({int(each) for each in block_of if each >= 0})
    yield Advice(
        saves=scene.saved(weights) - again,
        text=f"checkpoint the {count} blocks {label} (torch.utils.checkpoint): each keeps its input and computes "
        "the rest again in the backward",
    )


def _repeated_blocks(scene: _Scene) -> tuple[Ints, str]:
    """For each module the outermost repeated block that it is part of, -1 for none; and what the blocks are called."""
    modules = scene.result.tape.modules
    block_of = np.full(len(modules), -1, np.int64)
    labels = []
    pending = merged_tree(modules)
    while pending:
        node = pending.pop()
        if len(node.members) > 1 and node.children:
            block_of[node.members] = node.members
            labels.append(node.name)
        else:
            pending += node.children
    for index, module in enumerate(modules):  # parents come first
        if block_of[index] < 0 <= module.parent:
            block_of[index] = block_of[module.parent]
    return block_of, sorted(labels)[0] + (", ..." if len(labels) > 1 else "") if labels else ""


def _autocast(scene: _Scene) -> Iterator[Advice]:
    """Half of the activations under autocast. Assumes that they are float32 if most of the modules' outputs are;
    norms, softmax and losses stay float32 under autocast, and integers stay what they are.
    """
    tape = scene.result.tape
    activation = scene.category == Category.ACTIVATION
    if not scene.on_gpu or not _mostly_float32(scene, activation):
        return
    copies = scene.at(scene.category == Category.PARAMETER) // 2  # autocast keeps a copy of each weight that it cast
    yield Advice(
        saves=scene.saved(np.where(activation, tape.allocations["block"] // 2, 0)) - copies,
        text='run the forward under torch.autocast("cuda", torch.bfloat16): activations, float32 now, take half',
    )


def _mostly_float32(scene: _Scene, activation: npt.NDArray[np.bool_]) -> bool:
    tape = scene.result.tape
    elements = np.array([np.prod(m.output_shape, dtype=np.int64) if m.output_shape else 0 for m in tape.modules] + [0])
    of_output = elements[tape.allocations["module"]]
    requested = tape.allocations["requested"]
    known = activation & (of_output > 0)
    float32 = int(requested[known & (requested == 4 * of_output)].sum())
    half = int(requested[known & (requested == 2 * of_output)].sum())
    return float32 > 9 * half


def _smaller_batch(scene: _Scene) -> Iterator[Advice]:
    """Assumes that activations and inputs are in proportion to the batch, which the tape can't show."""
    grows = np.isin(scene.category, (Category.ACTIVATION, Category.INPUT))
    if Phase.BACKWARD in scene.phases():
        yield Advice(
            saves=scene.saved(np.where(grows, scene.block // 2, 0)),
            text="halve the batch and accumulate gradients over two: activations and inputs take half "
            "(temporaries that depend on the batch shrink too)",
        )


def _no_graph(scene: _Scene) -> Iterator[Advice]:
    """Assumes that a recording with forwards and no backward needs no graph. Wrong where it only stopped too early."""
    activation = scene.category == Category.ACTIVATION
    phases = scene.phases()
    several = len(np.unique(scene.result.tape.allocations["module"][activation & scene.moment.alive])) > 2
    if Phase.FORWARD in phases and Phase.BACKWARD not in phases and several and not scene.moment.failed:
        yield Advice(
            saves=scene.saved(np.where(activation, scene.block, 0)),
            text="run this under torch.inference_mode(): no backward followed, and activations were kept for one",
        )


def _optimizer_temporaries(scene: _Scene) -> Iterator[Advice]:
    made = scene.result.tape.allocations["phase"] == Phase.OPTIMIZER
    temporary = made & (scene.category == Category.TEMPORARY)
    yield Advice(
        saves=scene.saved(np.where(temporary, scene.block, 0)),
        text="give the optimizer fused=True (or foreach=False): its step() makes temporaries for many "
        "parameters at once",
    )


def _optimizer_state(scene: _Scene) -> Iterator[Advice]:
    state = scene.category == Category.OPTIMIZER_STATE
    breakdown = scene.moment.breakdown
    # Two states to a parameter are Adam's; a small state is not worth another optimizer.
    if breakdown.optimizer_state >= breakdown.parameters > 0:
        yield Advice(
            saves=scene.saved(np.where(state, scene.block * 3 // 4, 0)),
            text="use an 8-bit optimizer (torchao, bitsandbytes): its state takes a quarter; Adafactor's takes "
            "next to nothing",
        )


def _stale_gradients(scene: _Scene) -> Iterator[Advice]:
    """Gradients of the last step that are still there while this step's forward runs. With set_to_none=True, called
    before the forward, each comes back only when the backward reaches its module.
    """
    tape, moment = scene.result.tape, scene.moment
    table, events = tape.allocations, tape.events
    stale = (scene.category == Category.GRADIENT) & (table["step"] < moment.step) & moment.alive
    if not stale.any() or moment.phase not in (Phase.FORWARD, Phase.BACKWARD):
        return
    during = np.flatnonzero((events["step"] == moment.step) & np.isin(events["phase"], (Phase.FORWARD, Phase.BACKWARD)))
    less = np.zeros(len(events) + 1, np.int64)
    backward = during[events["phase"][during] == Phase.BACKWARD]
    reached, first = np.unique(events["module"][backward], return_index=True)
    comes_back = dict(zip(reached.tolist(), backward[first].tolist(), strict=True))
    for row in np.flatnonzero(stale):
        until = comes_back.get(int(table["module"][row]), int(during[-1]) + 1)
        if table["died"][row] >= 0:
            until = min(until, int(table["died"][row]))
        less[int(during[0]) + 1 : until + 1] += scene.block[row]
    if moment.failed:
        saves = int(less[moment.event + 1])
    else:
        allocated = scene.result.timeline.allocated[during[0] + 1 : during[-1] + 2]
        saves = int(allocated.max() - (allocated - less[during[0] + 1 : during[-1] + 2]).max())
    yield Advice(
        saves=saves,
        text="call optimizer.zero_grad() (set_to_none=True is the default) before the forward: the last step's "
        "gradients are alive during this one's",
    )


def _chunked_loss(scene: _Scene) -> Iterator[Advice]:
    """Large tensors that a loss makes outside every module. Assumes that all tensors of that size are its own."""
    tape = scene.result.tape
    table = tape.allocations
    working = np.isin(scene.category, (Category.ACTIVATION, Category.TEMPORARY))
    of_loss = working & (table["module"] < 0) & np.isin(table["phase"], (Phase.FORWARD, Phase.BACKWARD))
    of_loss &= scene.moment.alive
    if not of_loss.any():
        return
    size = int(table["requested"][of_loss].max())
    alike = working & (table["requested"] == size)
    count = int((alike & scene.moment.alive).sum())
    if scene.at(alike) * 10 >= scene.moment.breakdown.allocated:
        head = "the last layer and " * bool((alike & scene.moment.alive & (table["module"] >= 0)).any())
        yield Advice(
            saves=scene.saved(np.where(alike, scene.block * 7 // 8, 0)),
            text=f"compute {head}the loss in 8 chunks, or fused: {count} tensors of the size that the loss works on "
            "are alive at once",
        )


def _fragmentation(scene: _Scene) -> Iterator[Advice]:
    """Assumes that growing segments would waste nothing. Wrong where a program's sizes change all the time."""
    result = scene.result
    if not scene.on_gpu or "expandable_segments:True" in result.tape.alloc_conf:
        return
    if scene.moment.failed:
        cached, reserved = scene.moment.breakdown.cached, scene.moment.breakdown.reserved
    else:
        reserved = result.peak_reserved
        cached = reserved - result.peak_allocated
    if cached * 10 >= reserved and cached >= _SEGMENTS:
        yield Advice(
            saves=cached,
            text="set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: the allocator holds this much more than was "
            "ever allocated at once"
            if not scene.moment.failed
            else "set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: the allocator holds this much in pieces that "
            "were too small",
            of_reserved=True,
        )


def _growth(scene: _Scene) -> Iterator[Advice]:
    """Memory that grows by the same amount in each step. The first two are left out: states and caches come there."""
    ends: dict[int, int] = {}
    for each in scene.result.steps:
        ends[each.step] = each.end_allocated
    levels = np.array([ends[step] for step in sorted(ends)][2:-1], np.int64)  # the last may be incomplete
    grows = np.diff(levels)
    if len(grows) >= 3 and grows.min() > 0 and grows.max() <= 2 * grows.min():
        yield Advice(
            saves=int(levels[-1] - levels[0]),
            text=f"find what keeps {int(np.median(grows)):,} B more in each step: a list of losses keeps their graphs "
            "(append loss.item() or loss.detach() instead)",
        )


_RULES: Sequence[Callable[[_Scene], Iterator[Advice]]] = (
    _checkpoint,
    _autocast,
    _smaller_batch,
    _no_graph,
    _optimizer_temporaries,
    _optimizer_state,
    _stale_gradients,
    _chunked_loss,
    _fragmentation,
    _growth,
)
