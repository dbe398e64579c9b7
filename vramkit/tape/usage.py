"""What each module and each step held. Knows a tape and the modules' names; reads nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import printable
from ..sizes import format_size
from .events import Category, Ints, Module, Phase, Tape
from .owners import owners


@dataclass(frozen=True, slots=True, kw_only=True)
class ModulePhase:
    """What happened in one phase (but optimizer steps) of one module, with everything inside it; bytes."""

    phase: Phase
    temporaries: int
    """Highest bytes of temporaries, made in it, that were alive at once."""
    peak: int
    """Highest ``memory_allocated()`` of the whole device while the program was in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleUsage:
    """What one module held, with everything inside it; bytes as the program asked for them."""

    name: str
    """Qualified: the model's name, then the path below it."""
    kind: str
    """Name of the class."""
    parameters: int = 0
    """Bytes of parameters; a tensor that two modules share counts where it was met first."""
    gradients: int = 0
    """Highest bytes of its parameters' gradients that were alive at once."""
    optimizer_state: int = 0
    """Highest bytes of its parameters' optimizer state that were alive at once."""
    activations: int = 0
    """Highest bytes of activations, made in its forward, that were alive at once."""
    temporaries: int = 0
    """Highest bytes of temporaries, made in any of its phases, that were alive at once."""
    at_peak: int = 0
    """Bytes made in it that were alive when the whole device's allocated memory was highest."""
    peak: int = 0
    """Highest ``memory_allocated()`` of the whole device while the program was inside it; 0: nothing happened there."""
    phases: tuple[ModulePhase, ...] = ()
    """Its forward, backward, recomputation and evaluation apart, as far as anything happened in them."""
    calls: int = 0
    """How often its forward ran, recomputations included."""
    output_shape: tuple[int, ...] = ()
    """Shape of the first tensor that its first call returned."""
    children: tuple[ModuleUsage, ...] = field(default=(), repr=False)

    def walk(self) -> Iterator[ModuleUsage]:
        """This module and all inside it, outermost first."""
        yield self
        for child in self.children:
            yield from child.walk()

    def __repr__(self) -> str:
        return (
            f"ModuleUsage({printable(self.name)} ({printable(self.kind)}): parameters {format_size(self.parameters)}, "
            f"activations {format_size(self.activations)}, {self.calls} calls)"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseUsage:
    """What one phase of one training step, or evaluation before or after it, reached, in bytes."""

    step: int
    """From 0. Evaluation has the number of the step that follows it, or of the last."""
    phase: Phase
    events: int
    """Allocations, frees and segment changes in it."""
    peak_allocated: int
    """Highest ``memory_allocated()``."""
    peak_reserved: int
    """Highest ``memory_reserved()``."""
    end_allocated: int
    """``memory_allocated()`` after its last event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepUsage:
    """What one training step reached, in bytes, and each of its phases; evaluation is none of them.

    Where nothing trains, a step is what ``prof.step()`` ended, or a forward of the first model, in evaluation or not.
    """

    step: int
    """From 0."""
    phases: tuple[PhaseUsage, ...]
    """Its phases, in the order in which they were first met."""
    end_allocated: int
    """``memory_allocated()`` after its last event."""

    @property
    def events(self) -> int:
        """Allocations, frees and segment changes in it."""
        return sum(each.events for each in self.phases)

    @property
    def peak_allocated(self) -> int:
        """Highest ``memory_allocated()``."""
        return max(each.peak_allocated for each in self.phases)

    @property
    def peak_reserved(self) -> int:
        """Highest ``memory_reserved()``."""
        return max(each.peak_reserved for each in self.phases)


def module_tree(tape: Tape) -> tuple[ModuleUsage, ...]:
    """Usage of every module that was called or holds parameters: one tree for each model.

    Returns:
        The roots, in the order in which they were met.
    """
    modules = tape.modules
    if not modules:
        return ()
    children: list[list[int]] = [[] for _ in modules]
    roots: list[int] = []
    for index, info in enumerate(modules):
        (children[info.parent] if info.parent >= 0 else roots).append(index)
    rank, last = _preorder(roots, children)
    table, events = tape.allocations, tape.events
    peak_event = tape.peak_event
    owner = np.where(table["module"] >= 0, rank[np.maximum(table["module"], 0)], -1)
    belongs = owners(tape)
    holder = np.where(belongs >= 0, rank[np.maximum(belongs, 0)], -1)
    gradients = _Spans.of(tape, holder, table["category"] == Category.GRADIENT)
    states = _Spans.of(tape, holder, table["category"] == Category.OPTIMIZER_STATE)
    activations = _Spans.of(tape, owner, table["category"] == Category.ACTIVATION)
    temporaries = _Spans.of(tape, owner, table["category"] == Category.TEMPORARY)
    at_peak = np.zeros(len(modules) + 1, np.int64)
    held = tape.alive_at(peak_event) & (owner >= 0)
    np.add.at(at_peak, owner[held] + 1, table["requested"][held])
    at_peak = np.cumsum(at_peak)
    inside = events["module"] >= 0
    peaks = np.zeros((len(Phase), len(modules)), np.int64)
    np.maximum.at(peaks, (events["phase"][inside], rank[events["module"][inside]]), tape.allocated[inside])
    temporary = table["category"] == Category.TEMPORARY
    in_phase = {
        phase: _Spans.of(tape, owner, temporary & (table["phase"] == phase))
        for phase in (Phase.FORWARD, Phase.BACKWARD, Phase.RECOMPUTE, Phase.EVALUATION)
    }
    parameters = np.zeros(len(modules) + 1, np.int64)
    for index, info in enumerate(modules):
        parameters[rank[index] + 1] = info.parameters
    parameters = np.cumsum(parameters)

    def build(index: int) -> ModuleUsage:
        first, end = int(rank[index]), int(last[index])
        info = modules[index]
        return ModuleUsage(
            name=info.name,
            kind=info.kind,
            parameters=int(parameters[end] - parameters[first]),
            gradients=gradients.highest(first, end),
            optimizer_state=states.highest(first, end),
            activations=activations.highest(first, end),
            temporaries=temporaries.highest(first, end),
            at_peak=int(at_peak[end] - at_peak[first]),
            peak=int(peaks[:, first:end].max()),
            phases=tuple(
                ModulePhase(phase=phase, temporaries=spans.highest(first, end), peak=peak)
                for phase, spans in in_phase.items()
                if (peak := int(peaks[phase, first:end].max()))
            ),
            calls=info.calls,
            output_shape=info.output_shape,
            children=tuple(build(child) for child in children[index]),
        )

    return tuple(build(root) for root in roots)


def _preorder(roots: Sequence[int], children: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    """Each module's place in preorder, and one past the last place inside it: a subtree is one range of places."""
    rank = np.zeros(len(children), np.int64)
    last = np.zeros(len(children), np.int64)
    place = 0
    pending = [(root, False) for root in reversed(roots)]
    while pending:
        index, done = pending.pop()
        if done:
            last[index] = place
            continue
        rank[index] = place
        place += 1
        pending.append((index, True))
        pending += [(child, False) for child in reversed(children[index])]
    return rank, last


@dataclass(frozen=True)
class _Spans:
    """Lives of some allocations, sorted by the module that made them."""

    owner: Ints
    at: Ints
    """Event of each birth and death."""
    change: Ints
    """Bytes: positive at a birth."""

    @classmethod
    def of(cls, tape: Tape, owner: Ints, chosen: npt.NDArray[np.bool_]) -> _Spans:
        rows = np.flatnonzero(chosen & (owner >= 0))
        table = tape.allocations[rows]
        died = table["died"]
        dead = died >= 0
        owners = np.concatenate([owner[rows], owner[rows][dead]])
        at = np.concatenate([table["born"], died[dead]])
        change = np.concatenate([table["requested"], -table["requested"][dead]])
        order = np.argsort(owners, kind="stable")
        return cls(owners[order], at[order], change[order])

    def highest(self, first: int, end: int) -> int:
        """Highest bytes alive at once of what the modules in a range of places made."""
        span = slice(*np.searchsorted(self.owner, [first, end]))
        at, change = self.at[span], self.change[span]
        return int(np.cumsum(change[np.argsort(at, kind="stable")]).max(initial=0))


def phase_table(tape: Tape) -> tuple[PhaseUsage, ...]:
    """Usage of every phase of every step, in the order in which the phases were first met."""
    events = tape.events
    if not len(events):
        return ()
    key = events["step"].astype(np.int64) * len(Phase) + events["phase"]
    unique, first, group = np.unique(key, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    allocated, reserved = tape.allocated, tape.reserved
    peak_allocated = np.zeros(len(unique), np.int64)
    peak_reserved = np.zeros(len(unique), np.int64)
    np.maximum.at(peak_allocated, group, allocated)
    np.maximum.at(peak_reserved, group, reserved)
    count = np.bincount(group, minlength=len(unique))
    end = np.zeros(len(unique), np.int64)
    end[group] = np.arange(len(events))  # the last assignment stays
    return tuple(
        PhaseUsage(
            step=int(unique[i] // len(Phase)),
            phase=Phase(int(unique[i] % len(Phase))),
            events=int(count[i]),
            peak_allocated=int(peak_allocated[i]),
            peak_reserved=int(peak_reserved[i]),
            end_allocated=int(allocated[end[i]]),
        )
        for i in order
    )


def step_table(tape: Tape, phases: Sequence[PhaseUsage]) -> tuple[StepUsage, ...]:
    """Usage of every step, in order, from that of its phases."""
    of_step: dict[int, list[PhaseUsage]] = {}
    for each in phases:
        if each.phase is not Phase.EVALUATION or not tape.trains:
            of_step.setdefault(each.step, []).append(each)
    at = np.flatnonzero((tape.events["phase"] != Phase.EVALUATION) | (not tape.trains))
    steps, last = np.unique(tape.events["step"][at][::-1], return_index=True)  # the last event of each
    ends = tape.allocated[at][::-1][last]
    return tuple(
        StepUsage(step=step, phases=tuple(of_step[step]), end_allocated=end)
        for step, end in zip(steps.tolist(), ends.tolist(), strict=True)
    )


def models_of(modules: Sequence[Module]) -> list[int]:
    """For each module the index of the model that it is part of."""
    models: list[int] = []
    for index, module in enumerate(modules):  # parents come first
        models.append(models[module.parent] if module.parent >= 0 else index)
    return models
