"""What a program was doing at each event, from its marks. Knows no torch, and not what any allocation was for.

Marks are laid down by every thread, and only some forwards and backwards are followed module by module; here they
become one story, with a track for each of the threads that train at once: for every event the phase, the module, the
step, and the zone inside which a temporary lives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..tape.events import PASS, Action, Evaluation, Phase, Table
from .recording import CREATES_GRAPH, FOLLOWED, NO_MODULE, Kind, Mark, Recording
from .steps import Steps
from .tracks import tracks_of


@dataclass
class Zone:
    """A stretch of the program inside which a temporary is born and gone."""

    phase: Phase
    begin: int
    """Number of the mark that began it."""
    track: int = 0
    """The track that it is part of."""
    end: int = -1
    """Number of the mark that ended it; -1: none did."""
    creates_graph: bool = False
    is_followed: bool = False
    """A forward or backward whose modules are known."""
    root: int = -1
    """The outermost module of a forward."""
    keeps_nothing: bool = False
    """A forward without gradients that an exception left: what it made, only the exception holds."""
    makes_graph: bool = False
    """A forward that made an autograd graph."""
    after_graph: bool = False
    """Outside every model, after a forward that made an autograd graph."""
    part_of: Phase = Phase.OUTSIDE
    """Outside every model, the phase that this belongs to all the same."""
    is_loss: bool = False
    """Outside every model, but part of a graph: between a forward and the backward of what it made, say."""


@dataclass
class Contexts:
    """What was going on at each event of a recording; one item an event."""

    phase: npt.NDArray[np.uint8]
    """Codes of ``vramkit.tape.events.Phase``."""
    module: npt.NDArray[np.int32]
    """Index of a module, -1: none."""
    step: npt.NDArray[np.int32]
    """Training step, from 0."""
    zone: npt.NDArray[np.int32]
    """Index into ``Story.zones``."""
    forward: npt.NDArray[np.int32]
    """Number of the outermost forward that had begun last, from 1; 0: none had."""
    measures: npt.NDArray[np.bool_]
    """Whether ``torch.compile`` was compiling, or measuring kernels."""
    clears: npt.NDArray[np.bool_]
    """Whether what was freed was cuBLAS's."""


@dataclass
class _Reading:
    """Where the reading of a track's marks is."""

    track: int
    open_zones: list[int]
    """Indices of zones, the innermost last."""
    in_backward: bool = False
    forward_at: int = -1
    """The module that the forward is in."""
    forward: int = 0
    """The zone of the last forward that ended."""
    backward_at: int = -1
    boundary: int = 0
    """The last mark at which the zone or the step changed."""
    forwards: int = 0
    """Number of the last forward that began, of those of all tracks; 0: none did."""


@dataclass
class Story:
    """What each mark means, given all of them: phase, module, zone and step that hold from it on.

    Args:
        marks: in the order in which they were made.
        model_of: index of the model that a module is part of, for each module; a module beyond it is one of its own.
    """

    marks: Sequence[Mark]
    model_of: Sequence[int] = ()
    zones: list[Zone] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = len(self.marks) + 1
        self.phase = np.zeros(count, np.uint8)
        self.module = np.full(count, -1, np.int32)
        self.zone = np.zeros(count, np.int32)
        self.forward = np.zeros(count, np.int32)
        self.measures, self.clears = np.zeros(count, bool), np.zeros(count, bool)
        self._track_of = tracks_of(self.marks)  # by line
        steps = Steps(self.marks, self._track_of, self.model_of)
        self.step, self.evaluation, self.forwards = steps.step, steps.evaluation, steps.forwards
        self._tracks = max(self._track_of.values(), default=0) + 1
        # Of each track: the last mark up to each mark, and the last up to there at which the zone or the step changed.
        self._last = np.zeros((self._tracks, count), np.int64)
        self._boundary = np.zeros((self._tracks, count), np.int64)
        self._read()
        self._find_losses()

    def _read(self) -> None:
        readings = []
        for track in range(self._tracks):
            readings.append(_Reading(track, [len(self.zones)]))
            self.zones.append(Zone(Phase.OUTSIDE, 0, track))
        raised = []  # zones of steps that raised: nobody knows when the program left them
        left = {each.number for each in self.forwards if each.was_left and not each.has_grad}
        forwards = 0
        measuring: dict[int, int] = {}  # of each line: in how many compilations and measurements it is
        clearing: dict[int, int] = {}  # whether it gives workspaces back
        for number, (kind, value, line) in enumerate(self.marks, 1):
            at = readings[self._track_of[line]]
            before = at.open_zones[-1]
            match kind:
                case Kind.ROOT:
                    at.forward_at = value
                    self._open(at, self._phase_of_forward(at, number), number)
                    self.zones[-1].root = value
                    if self.zones[-1].phase is not Phase.RECOMPUTE:
                        forwards += 1
                        at.forwards = forwards
                    self.zones[-1].keeps_nothing = number in left
                case Kind.IN:
                    at.forward_at = value
                    self.zones[before].is_followed = True
                case Kind.ROOT_END:
                    at.forward_at, at.forward = -1, before
                    self._close(at, number)
                case Kind.GRAPH:
                    self.zones[at.forward].makes_graph = True
                    self.zones[before].after_graph = self.zones[before].phase is Phase.OUTSIDE
                case Kind.BACKWARD:
                    at.in_backward, at.backward_at = True, -1
                    self._open(at, Phase.BACKWARD, number)
                    self.zones[-1].creates_graph = bool(value & CREATES_GRAPH)
                case Kind.BACKWARD_AT:
                    at.backward_at = value
                case Kind.BACKWARD_END:
                    at.in_backward = False
                    self.zones[before].is_followed = bool(value & FOLLOWED)
                    self._close(at, number)
                case Kind.OPTIMIZER:
                    self._open(at, Phase.OPTIMIZER, number)
                case Kind.OPTIMIZER_END:
                    if value < 0:
                        raised.append(before)
                    self._close(at, number)
                case Kind.MEASURES:
                    measuring[line] = measuring.get(line, 0) + (1 if value else -1)
                case Kind.CLEARS:
                    clearing[line] = value
            self.measures[number], self.clears[number] = measuring.get(line, 0) > 0, clearing.get(line, 0) > 0
            zone = at.open_zones[-1]
            if zone != before or self.step[number] != self.step[number - 1]:
                at.boundary = number
            phase = self.zones[zone].phase
            self.phase[number] = phase
            if phase in (Phase.FORWARD, Phase.EVALUATION, Phase.RECOMPUTE):
                self.module[number] = at.forward_at
            elif phase is Phase.BACKWARD:
                self.module[number] = at.backward_at
            self.zone[number], self.forward[number] = zone, at.forwards
            self._last[at.track, number], self._boundary[at.track, number] = number, at.boundary
        for each in (self._last, self._boundary):
            np.maximum.accumulate(each, axis=1, out=each)
        for zone in raised:
            self.zones[zone].phase = Phase.OUTSIDE
            self.phase[self.zone == zone] = Phase.OUTSIDE

    def _phase_of_forward(self, at: _Reading, number: int) -> Phase:
        if at.in_backward:
            return Phase.RECOMPUTE
        return Phase.EVALUATION if number in self.evaluation else Phase.FORWARD

    def _open(self, at: _Reading, phase: Phase, number: int) -> None:
        if self.zones[at.open_zones[-1]].phase is Phase.OUTSIDE:
            self.zones[at.open_zones.pop()].end = number
        at.open_zones.append(len(self.zones))
        self.zones.append(Zone(phase, number, at.track))

    def _close(self, at: _Reading, number: int) -> None:
        self.zones[at.open_zones.pop()].end = number
        if not at.open_zones:
            at.open_zones.append(len(self.zones))
            self.zones.append(Zone(Phase.OUTSIDE, number, at.track))

    def _find_losses(self) -> None:
        """What runs between a forward that made a graph and the next backward belongs to the forward.

        So does what runs after a backward that made a graph itself, up to the next backward: a gradient penalty, the
        residual of a differential equation, parameters after a step of a meta-learner's. (In evaluation mode such a
        backward gives a validation's forces, and nothing follows.) And what runs after a forward of evaluation, up to
        the next forward, belongs to it: its loss, and what is computed of it.
        """
        modes = {each.number: each.is_training for each in self.forwards}
        for track in range(self._tracks):
            waiting: list[Zone] = []
            last = Phase.OUTSIDE  # of the zones that are in a phase
            is_training = True  # the mode of the last forward
            goes_on = False  # the last of these zones was a backward that made a graph for a loss
            for zone in self.zones:
                if zone.track != track:
                    continue
                if zone.phase is Phase.OUTSIDE:
                    if last is Phase.EVALUATION:
                        zone.part_of, zone.is_loss = last, zone.after_graph
                    elif waiting or zone.after_graph or goes_on:
                        waiting.append(zone)
                    continue
                if zone.phase is Phase.BACKWARD:
                    for each in waiting:
                        each.part_of, each.is_loss = Phase.FORWARD, True
                if zone.phase in (Phase.BACKWARD, Phase.OPTIMIZER):
                    waiting = []
                is_training = modes.get(zone.begin, is_training)
                goes_on = zone.creates_graph and is_training
                last = zone.phase
        part_of = np.array([zone.part_of for zone in self.zones], np.uint8)[self.zone]
        outside = self.phase == Phase.OUTSIDE
        self.phase[outside] = part_of[outside]

    @cached_property
    def leads_to_training(self) -> Sequence[bool]:
        """Of each mark, from number 0 on: whether the next pass of its line is one of training, with gradients."""
        found = [False] * (len(self.marks) + 1)
        others = {each.number for each in self.forwards if each.needs_no_backward} | self.evaluation.keys()
        trains: dict[int, bool] = {}  # of each line
        for number in range(len(self.marks), 0, -1):
            kind, _, line = self.marks[number - 1]
            if kind in (Kind.ROOT, Kind.BACKWARD, Kind.OPTIMIZER):
                trains[line] = number not in others
            found[number] = trains.get(line, False)
        return found

    def evaluations(self) -> tuple[Evaluation, ...]:
        """What was evaluated, one for each model."""
        found: dict[int, list[bool]] = {}
        for each in self.evaluation.values():
            model = self.model_of[each.module] if each.module < len(self.model_of) else each.module
            found.setdefault(model, []).append(each.made_graph or (each.has_grad and each.was_left))
        return tuple(
            Evaluation(module=model, forwards=len(graphs), with_graph=sum(graphs)) for model, graphs in found.items()
        )

    def passes(self, recording: Recording) -> Table:
        """Every outermost forward, backward and optimizer step; dtype ``PASS``."""
        found = np.zeros(len(self.zones), PASS)
        forwards = {each.number: each for each in self.forwards}
        kept = []
        for index, zone in enumerate(self.zones):
            if zone.phase in (Phase.OUTSIDE, Phase.RECOMPUTE):
                continue
            kept.append(index)
            each = forwards.get(zone.begin)
            end = int(recording.position[zone.end]) if zone.end >= 0 else len(recording.action)
            begin = max(0, int(recording.position[zone.begin]))  # -1: it was before what was kept
            how = (each.has_grad, each.made_graph, each.was_left, each.is_source) if each else (False,) * 4
            optimizer = self.marks[zone.begin - 1][1] + 1 if zone.phase is Phase.OPTIMIZER else 0
            found[index] = (zone.phase, zone.root, self.step[zone.begin], begin, max(begin, end), *how, optimizer)
        return found[kept]

    def contexts(self, recording: Recording) -> Contexts:
        """What was going on at each event."""
        own = np.minimum(recording.mark, len(self.marks))
        if not len(own):
            empty = np.zeros(0, np.int32)
            return Contexts(np.zeros(0, np.uint8), empty, empty, empty, empty, *[np.zeros(0, bool)] * 2)
        track = self._tracks_of_events(recording, own)
        # A thread that was not told of a change (an autograd thread before its first node, a data loader's thread)
        # still carries an older mark: then the last change that any thread of the track had seen holds.
        reached = np.maximum.accumulate(own)
        holds = np.maximum(self._last[track, own], self._boundary[track, reached])
        phase, module, zone = self.phase[holds], self.module[holds], self.zone[holds]
        before = holds == 0  # any mark of its track
        zone[before] = track[before]
        noted = recording.at_module != NO_MODULE
        phase[noted], module[noted] = Phase.BACKWARD, recording.at_module[noted]
        zone[noted] = self.zone[self._last[track, reached][noted]]
        step, forward = self.step[reached], self.forward[holds]
        contexts = Contexts(phase, module, step, zone, forward, self.measures[own], self.clears[own])
        self._complete(recording, contexts)
        return contexts

    def _tracks_of_events(self, recording: Recording, own: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        lines = recording.line
        if lines is None:
            lines = np.array([0, *(line for _, _, line in self.marks)], np.int64)[own]
        track_of = np.zeros(max(int(lines.max()), *self._track_of, 0) + 1, np.int64)  # a line without marks: the first
        for line, track in self._track_of.items():
            track_of[line] = track
        found: npt.NDArray[np.int64] = track_of[lines]
        return found

    def _complete(self, recording: Recording, contexts: Contexts) -> None:
        """Give a forward or backward that was not followed the modules of one that was, if their events are the same.

        The same allocations and frees in the same order come from the same code; sizes may differ with the batch. One
        that an exception ended has the modules of one that begins like it.
        """
        phase, module, zone = contexts.phase, contexts.module, contexts.zone
        # Segments come and go as the cache has it, kernels are measured once, and workspaces come in a thread's first
        # backward only.
        of_blocks = (recording.action <= Action.FREE_COMPLETED) & ~contexts.measures
        of_blocks &= ~_workspaces(recording, contexts.step)
        for each_phase in (Phase.FORWARD, Phase.EVALUATION, Phase.BACKWARD, Phase.RECOMPUTE):
            of_phase = of_blocks & (phase == each_phase)
            if each_phase in (Phase.FORWARD, Phase.EVALUATION):
                of_phase &= module >= 0  # a loss belongs to no module
            chosen = np.flatnonzero(of_phase)
            order = chosen[np.argsort(zone[chosen], kind="stable")]
            begins = np.flatnonzero(np.diff(zone[order], prepend=-1))
            known: dict[bytes, npt.NDArray[np.int32]] = {}
            unknown = []
            for rows in np.split(order, begins[1:]):
                if not len(rows):
                    continue
                its_zone = self.zones[zone[rows[0]]]
                key = f"{its_zone.root} ".encode() + recording.action[rows].tobytes()
                if its_zone.is_followed:
                    known[key] = module[rows]
                else:
                    unknown.append((rows, key))
            for rows, key in unknown:
                match = known.get(key)
                if match is None:
                    match = next((modules for other, modules in known.items() if other.startswith(key)), None)
                if match is not None:
                    module[rows] = match[: len(rows)]


def _workspaces(recording: Recording, step: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Which events are of workspaces that libraries keep; shape ``(events,)``.

    Tensors can have such a size, too: it is what came in the first step that asked for so much, and was never given
    back.
    """
    found: npt.NDArray[np.bool_] = np.isin(recording.size, sorted(recording.workspace_sizes))
    frees = np.flatnonzero(recording.action == Action.FREE)
    freed = dict(zip(recording.address[frees].tolist(), frees.tolist(), strict=True))  # when each address was, last
    first: dict[int, int] = {}  # of each size: the step in which it was asked for first
    for event in np.flatnonzero(found):
        if recording.action[event] != Action.ALLOC:
            found[event] = False
            continue
        earliest = first.setdefault(int(recording.size[event]), int(step[event]))
        found[event] = freed.get(int(recording.address[event]), -1) < event and step[event] == earliest
    return found
