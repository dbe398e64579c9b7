"""From raw events and marks to a tape on which every allocation has a category. Knows no torch.

At the time of an allocation nobody knows what it will be. So labels are settled here, afterwards, and each covers an
allocation's whole life: first what a scan saw (this address is a parameter, a gradient, a state, an input), then, for
everything that no scan saw, where it was born and whether it outlived the place of its birth.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .events import ALLOCATION, EVENT, Action, Category, Ints, Module, Phase, Table, Tape
from .recording.recorded import ACCUMULATES, CREATES_GRAPH, FOLLOWED, NO_MODULE, Kind, Mark, Recording, Scan

_UNSEEN = 255
_ALLOC, _FREE, _FREE_COMPLETED = int(Action.ALLOC), int(Action.FREE), int(Action.FREE_COMPLETED)


def attribute(recording: Recording, marks: Sequence[Mark], scans: Sequence[Scan], modules: Sequence[Module]) -> Tape:
    """Settle what every allocation of a recording was for.

    Args:
        recording: raw events of one device.
        marks: in the order in which they were made.
        scans: what ``SCAN`` marks point to.
        modules: what the marks' modules are.

    Returns:
        The tape; at each of its events the categories sum to what was allocated.
    """
    story = _Story(marks)
    context = story.contexts(recording)
    events = np.zeros(len(recording.action), EVENT)
    for name in ("action", "address", "size", "stream"):
        events[name] = getattr(recording, name)
    if len(events):
        events["time"] = recording.time - recording.time[0]
    events["phase"], events["module"], events["step"] = context.phase, context.module, context.step
    names: dict[str, int] = {}
    allocations = _pair(recording, events, _positioned(recording, marks, scans), names)
    _settle(recording, story, context, allocations)
    return Tape(
        events=events,
        allocations=allocations,
        segments=recording.segments,
        modules=tuple(modules),
        names=tuple(names),
        device=recording.device,
        alloc_conf=recording.alloc_conf,
    )


# -- what the program was doing ---------------------------------------------------------------------------------------


@dataclass
class _Zone:
    """A stretch of the program inside which a temporary is born and gone."""

    phase: Phase
    begin: int
    """Number of the mark that began it."""
    end: int = -1
    """Number of the mark that ended it; -1: none did."""
    creates_graph: bool = False
    is_followed: bool = False
    """A forward or backward whose modules are known."""
    root: int = -1
    """The outermost module of a forward."""
    is_loss: bool = False
    """Outside every model, but between a forward and the backward of what it made."""


@dataclass
class _Contexts:
    """One item an event."""

    phase: npt.NDArray[np.uint8]
    module: npt.NDArray[np.int32]
    step: npt.NDArray[np.int32]
    zone: npt.NDArray[np.int32]


@dataclass
class _Story:
    """What each mark means, given all of them: phase, module, zone and step that hold from it on."""

    marks: Sequence[Mark]
    zones: list[_Zone] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = len(self.marks) + 1
        self.phase = np.zeros(count, np.uint8)
        self.module = np.full(count, -1, np.int32)
        self.zone = np.zeros(count, np.int32)
        self.boundary = np.zeros(count, np.int64)  # the last mark up to here at which the zone or the step changed
        self.step = self._steps()
        self._read()
        self._find_losses()

    def _steps(self) -> npt.NDArray[np.int32]:
        """Index of the training step that each mark belongs to."""
        kinds = {kind for kind, _ in self.marks}
        steps = np.zeros(len(self.marks) + 1, np.int32)
        step, busy = 0, 0
        seen: set[int] = set()
        expected = self._optimizer_periods()
        unstepped = self._ends_of_accumulation()
        first_root = next((value for kind, value in self.marks if kind is Kind.ROOT), -1)
        for number, (kind, value) in enumerate(self.marks, 1):
            if kind in (Kind.ROOT, Kind.BACKWARD, Kind.OPTIMIZER):
                busy = step
            if Kind.STEP in kinds:
                ends = kind is Kind.STEP
            elif expected:
                seen |= {value} if kind is Kind.OPTIMIZER_END else set()
                ends = (
                    kind is Kind.OPTIMIZER_END
                    and value >= 0
                    and all(each in seen for each, (begin, end) in expected.items() if begin <= number <= end)
                )
            elif Kind.BACKWARD in kinds:
                ends = number in unstepped
            else:
                ends = kind is Kind.ROOT_END and value == first_root
            if ends:
                step += 1
                seen = set()
            steps[number] = step
        return np.minimum(steps, busy)  # what comes after the last step is its end, not another step

    def _optimizer_periods(self) -> dict[int, tuple[int, int]]:
        """Between which marks each optimizer belongs to every step.

        From its first step to its last; and before the first, as long as it takes turns with one that goes on after it.
        So models that are trained one after another don't wait for each other, and those of a GAN do.
        """
        ended = [
            (number, value)
            for number, (kind, value) in enumerate(self.marks, 1)
            if kind is Kind.OPTIMIZER_END and value >= 0
        ]
        last = {value: number for number, value in ended}
        first = {value: number for number, value in reversed(ended)}
        return {
            value: (min(first[other] for other in first if last[other] >= begin), last[value])
            for value, begin in first.items()
        }

    def _ends_of_accumulation(self) -> set[int]:
        """Ends of backwards whose gradients are gone before the next: steps, where no optimizer ever steps."""
        ends: set[int] = set()
        last = -1
        for number, (kind, value) in enumerate(self.marks, 1):
            if kind is Kind.BACKWARD and last >= 0 and not value & ACCUMULATES:
                ends.add(last)
            elif kind is Kind.BACKWARD_END:
                last = number
        return ends

    def _read(self) -> None:
        open_zones = [0]
        self.zones.append(_Zone(Phase.OUTSIDE, 0))
        in_backward = False
        forward_at = backward_at = -1
        boundary = 0
        left = []  # zones of steps that raised: nobody knows when the program left them
        for number, (kind, value) in enumerate(self.marks, 1):
            match kind:
                case Kind.ROOT:
                    forward_at = value
                    self._open(open_zones, Phase.RECOMPUTE if in_backward else Phase.FORWARD, number)
                    self.zones[-1].root = value
                case Kind.IN:
                    forward_at = value
                    self.zones[open_zones[-1]].is_followed = True
                case Kind.ROOT_END:
                    forward_at = -1
                    self._close(open_zones, number)
                case Kind.BACKWARD:
                    in_backward, backward_at = True, -1
                    self._open(open_zones, Phase.BACKWARD, number)
                    self.zones[-1].creates_graph = bool(value & CREATES_GRAPH)
                    self.zones[-1].is_followed = bool(value & FOLLOWED)
                case Kind.BACKWARD_AT:
                    backward_at = value
                case Kind.BACKWARD_END:
                    in_backward = False
                    self._close(open_zones, number)
                case Kind.OPTIMIZER:
                    self._open(open_zones, Phase.OPTIMIZER, number)
                case Kind.OPTIMIZER_END:
                    if value < 0:
                        left.append(open_zones[-1])
                    self._close(open_zones, number)
            zone = open_zones[-1]
            if zone != self.zone[number - 1] or self.step[number] != self.step[number - 1]:
                boundary = number
            phase = self.zones[zone].phase
            self.phase[number] = phase
            if phase in (Phase.FORWARD, Phase.RECOMPUTE):
                self.module[number] = forward_at
            elif phase is Phase.BACKWARD:
                self.module[number] = backward_at
            self.zone[number], self.boundary[number] = zone, boundary
        for zone in left:
            self.zones[zone].phase = Phase.OUTSIDE
            self.phase[self.zone == zone] = Phase.OUTSIDE

    def _open(self, open_zones: list[int], phase: Phase, number: int) -> None:
        if self.zones[open_zones[-1]].phase is Phase.OUTSIDE:
            self.zones[open_zones.pop()].end = number
        open_zones.append(len(self.zones))
        self.zones.append(_Zone(phase, number))

    def _close(self, open_zones: list[int], number: int) -> None:
        self.zones[open_zones.pop()].end = number
        if not open_zones:
            open_zones.append(len(self.zones))
            self.zones.append(_Zone(Phase.OUTSIDE, number))

    def _find_losses(self) -> None:
        """What runs between a forward that made a graph and the next backward belongs to the forward."""
        graphs = {number for number, (kind, _) in enumerate(self.marks, 1) if kind is Kind.GRAPH}
        waiting: list[_Zone] = []
        after_graph = False
        for zone in self.zones:
            if zone.phase is Phase.OUTSIDE:
                # The GRAPH mark follows the ROOT_END that began this zone.
                after_graph = after_graph or any(n in graphs for n in range(zone.begin, zone.begin + 2))
                if after_graph:
                    waiting.append(zone)
            elif zone.phase is Phase.BACKWARD:
                for each in waiting:
                    each.is_loss = True
                waiting, after_graph = [], False
            elif zone.phase is Phase.OPTIMIZER:
                waiting, after_graph = [], False
        loss = np.array([zone.is_loss for zone in self.zones])
        self.phase[loss[self.zone] & (self.phase == Phase.OUTSIDE)] = Phase.FORWARD

    def contexts(self, recording: Recording) -> _Contexts:
        """What was going on at each event."""
        own = np.minimum(recording.mark, len(self.marks))
        if not len(own):
            empty = np.zeros(0, np.int32)
            return _Contexts(np.zeros(0, np.uint8), empty, empty, empty)
        # A thread that was not told of a change (an autograd thread before its first node, a data loader's thread)
        # still carries an older mark: then the last change that any thread had seen holds.
        reached = np.maximum.accumulate(own)
        holds = np.maximum(own, self.boundary[reached])
        phase, module, zone = self.phase[holds], self.module[holds], self.zone[holds]
        noted = recording.at_module != NO_MODULE
        phase[noted], module[noted] = Phase.BACKWARD, recording.at_module[noted]
        zone[noted] = self.zone[reached[noted]]
        contexts = _Contexts(phase, module, self.step[reached], zone)
        self._complete(recording, contexts)
        return contexts

    def _complete(self, recording: Recording, contexts: _Contexts) -> None:
        """Give a forward or backward that was not followed the modules of one that was, if their events are the same.

        The same allocations and frees in the same order come from the same code; sizes may differ with the batch. One
        that an exception ended has the modules of one that begins like it.
        """
        phase, module, zone = contexts.phase, contexts.module, contexts.zone
        # Segments come and go as the cache has it, and workspaces only in a thread's first backward.
        of_blocks = recording.action <= _FREE_COMPLETED
        of_blocks &= ~np.isin(recording.size, sorted(recording.workspace_sizes))
        for each_phase in (Phase.FORWARD, Phase.BACKWARD, Phase.RECOMPUTE):
            of_phase = of_blocks & (phase == each_phase)
            if each_phase is Phase.FORWARD:
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


# -- allocations, and what scans saw of them --------------------------------------------------------------------------


def _positioned(recording: Recording, marks: Sequence[Mark], scans: Sequence[Scan]) -> list[tuple[int, Scan]]:
    """Scans with the index of the event before which each was made, in that order.

    Those from before a window that was kept are left out: what lay there then may be something else by now.
    """
    return [
        (int(recording.position[number]), scans[value])
        for number, (kind, value) in enumerate(marks, 1)
        if kind is Kind.SCAN and recording.position[number] >= 0
    ]


def _pair(recording: Recording, events: Table, scans: Sequence[tuple[int, Scan]], names: dict[str, int]) -> Table:
    """Match allocations with their frees, and label what the scans saw."""
    born = np.flatnonzero(recording.action == _ALLOC)
    before = len(recording.before)
    table = np.zeros(before + len(born), ALLOCATION)
    table["category"] = _UNSEEN
    table["died"] = table["name"] = -1
    old, new = table[:before], table[before:]
    old["born"] = old["module"] = -1
    for i, each in enumerate(recording.before):
        old["address"][i], old["block"][i] = each.address, each.block
        old["requested"][i], old["stream"][i] = each.requested, each.stream
    new["born"] = born
    for name in ("address", "stream"):
        new[name] = getattr(recording, name)[born]
    new["requested"], new["block"] = recording.size[born], recording.block[born]
    for name in ("phase", "module", "step"):
        new[name] = events[name][born]

    alive = {int(address): row for row, address in enumerate(old["address"])}
    pending: dict[int, int] = {}
    died = np.full(len(table), -1, np.int64)
    owner = np.full(len(events), -1, np.int32)
    labels = _Labels(table, names)
    row, upcoming, waiting = before, iter([*scans, (len(events) + 1, None)]), None
    due, waiting = next(upcoming)
    actions, addresses = recording.action.tolist(), recording.address.tolist()
    for i, (action, address) in enumerate(zip(actions, addresses, strict=True)):
        while due <= i and waiting is not None:
            labels.apply(waiting, alive)
            due, waiting = next(upcoming)
        if action == _ALLOC:
            alive[address] = owner[i] = row
            row += 1
        elif action == _FREE:
            found = alive.pop(address, -1)
            if found >= 0:
                died[found] = i
                owner[i] = pending[address] = found
        elif action == _FREE_COMPLETED:
            owner[i] = pending.pop(address, -1)
    while waiting is not None:
        labels.apply(waiting, alive)
        due, waiting = next(upcoming)
    table["died"] = died
    events["allocation"] = owner
    return table


@dataclass
class _Labels:
    """Puts what scans saw into the table; where two disagree, the first category in ``Category``'s order holds."""

    table: Table
    names: dict[str, int]

    def __post_init__(self) -> None:
        self._category = self.table["category"]
        self._name = self.table["name"]

    def apply(self, scan: Scan, alive: dict[int, int]) -> None:
        category = int(scan.category)
        starts: list[int] | None = None
        for i, address in enumerate(scan.addresses):
            row = alive.get(address, -1)
            if row < 0:
                if not address:
                    continue
                if starts is None:
                    starts = sorted(alive)
                row = self._containing(address, starts, alive)
                if row < 0:
                    continue
            if category < self._category[row]:
                self._category[row] = category
                if i < len(scan.names):
                    self._name[row] = self.names.setdefault(scan.names[i], len(self.names))

    def _containing(self, address: int, starts: Sequence[int], alive: dict[int, int]) -> int:
        """A tensor may be a view into a larger allocation, such as a flat buffer of gradients."""
        at = bisect_right(starts, address)
        if not at:
            return -1
        row = alive[starts[at - 1]]
        return row if address < starts[at - 1] + self.table["block"][row] else -1


# -- what no scan saw --------------------------------------------------------------------------------------------------


def _settle(recording: Recording, story: _Story, context: _Contexts, table: Table) -> None:
    """Give a category to every allocation that no scan saw, and take back inputs that a model made itself."""
    category, born, died = table["category"], table["born"], table["died"]
    new = born >= 0
    zone = np.zeros(len(table), np.int64)
    zone[new] = context.zone[born[new]]
    zone_phase = np.array([int(each.phase) for each in story.zones], np.uint8)[zone]
    zone_phase[~new] = Phase.OUTSIDE
    is_loss = np.array([each.is_loss for each in story.zones])[zone] & new
    foreign = np.zeros(len(table), bool)
    if recording.foreign is not None:
        foreign[new] = recording.foreign[born[new]]
    # A tensor that another model's forward made is no input, even where it is detached.
    category[(category == Category.INPUT) & new & ~foreign & (zone_phase != Phase.OUTSIDE)] = _UNSEEN
    category[(category == _UNSEEN) & foreign] = Category.OTHER
    unseen = category == _UNSEEN

    last = len(recording.action)
    ends = np.array([recording.position[each.end] if each.end >= 0 else last for each in story.zones], np.int64)
    outlives = (died < 0) | (died >= ends[zone])
    workspace = unseen & np.isin(table["requested"], sorted(recording.workspace_sizes))
    category[workspace & ~_doubtful(table, workspace & new)] = Category.WORKSPACE
    unseen = category == _UNSEEN

    creates_graph = np.array([each.creates_graph for each in story.zones])[zone]
    for_backward = np.isin(zone_phase, (Phase.FORWARD, Phase.RECOMPUTE)) | is_loss | creates_graph
    category[unseen & new] = Category.TEMPORARY
    category[unseen & new & outlives & for_backward] = Category.ACTIVATION
    loose = unseen & new & outlives & ~for_backward
    category[loose] = Category.OTHER
    category[loose & (zone_phase == Phase.OUTSIDE) & _of_a_batch(story, context, recording, table, zone)] = (
        Category.INPUT
    )
    category[unseen & ~new] = Category.OTHER


def _doubtful(table: Table, candidates: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Candidates for a workspace that are rather tensors of that size.

    A workspace of 8,519,680 bytes is told by its size: tensors seldom have it. One of 32 MiB is not; of those, the
    first of each stream and side of autograd is believed, if it lives on: there is one for each thread that multiplies.
    Wrong where a program keeps a tensor of just 32 MiB that it made before its first matrix product.
    """
    result = np.zeros(len(table), bool)
    seen: set[tuple[int, bool]] = set()
    for row in np.flatnonzero(candidates):
        size = int(table["requested"][row])
        if size & (size - 1):
            continue
        key = int(table["stream"][row]), table["phase"][row] in (Phase.BACKWARD, Phase.RECOMPUTE)
        result[row] = key in seen or table["died"][row] >= 0
        seen.add(key)
    return result


def _of_a_batch(
    story: _Story, context: _Contexts, recording: Recording, table: Table, zone: Ints
) -> npt.NDArray[np.bool_]:
    """Whether allocations look like part of a batch that no model saw: made just before a forward, gone a step later.

    Wrong for what a program makes between steps, keeps over the next forward and drops within a step.
    """
    last_step = int(context.step.max(initial=0))
    next_forward = np.full(len(story.zones) + 1, -1, np.int64)  # event at which the next forward begins, if it's next
    for index in range(len(story.zones) - 1, -1, -1):
        each = story.zones[index]
        if each.phase is Phase.FORWARD:
            next_forward[index] = recording.position[each.begin]
        elif each.phase is Phase.OUTSIDE:
            next_forward[index] = next_forward[index + 1]
    begins = next_forward[zone]
    died, step = table["died"], table["step"]
    if not len(context.step):
        return np.zeros(len(table), bool)
    gone_soon = (died >= begins) & (context.step[np.maximum(died, 0)] <= step + 1)
    in_the_last = (died < 0) & (step == last_step)  # nobody knows how long it would have lived
    of_a_batch: npt.NDArray[np.bool_] = (begins >= 0) & np.where(died >= 0, gone_soon, in_the_last)
    return of_a_batch
