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

from ..tape.events import ALLOCATION, EVENT, OF_MEASURING, Action, Category, Ints, Module, Phase, Table, Tape
from ..tape.stacks import Stacks
from ..tape.usage import models_of
from .context import Contexts, Story
from .exchanged import results_of_collectives
from .kept import Keeping, Seen
from .recording import Kind, Mark, Recording, Scan

_UNSEEN = 255


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
    story = Story(marks, models_of(modules))
    context = story.contexts(recording)
    events = np.zeros(len(recording.action), EVENT)
    for name in ("action", "address", "size", "stream"):
        events[name] = getattr(recording, name)
    if recording.pool is not None:
        events["pool"] = recording.pool
    if len(events):
        events["time"] = recording.time - recording.time[0]
    events["phase"], events["module"], events["step"] = context.phase, context.module, context.step
    names: dict[str, int] = {}
    allocations, labels = _pair(recording, events, _positioned(recording, story, scans), names)
    new = allocations["born"] >= 0
    allocations["forward"][new] = context.forward[allocations["born"][new]]
    _settle(recording, story, context, allocations, labels)
    operators = _operators(recording, allocations)
    return Tape(
        events=events,
        allocations=allocations,
        segments=recording.segments,
        passes=story.passes(recording),
        modules=tuple(modules),
        names=tuple(names),
        operators=operators,
        evaluations=story.evaluations(),
        device=recording.device,
        alloc_conf=recording.alloc_conf,
        stacks=_stacks(recording, allocations),
        tie_break=recording.tie_break,
        is_window=recording.lost > 0,
    )


def _stacks(recording: Recording, allocations: Table) -> Stacks | None:
    if recording.stacks is None or recording.stack is None:
        return None
    before = [each.stack for each in recording.before]
    of = np.array([*before, *recording.stack[allocations["born"][len(before) :]].tolist()], np.int64)
    of[allocations["category"] == Category.WORKSPACE] = -1  # whoever needs one first is not to blame
    return recording.stacks.stacks(of)


def _operators(recording: Recording, allocations: Table) -> tuple[str, ...]:
    """Number the operators that made the allocations, and give them back in that order."""
    numbers = {"": 0}
    made = [each.operator for each in recording.before]
    if recording.operator:
        made += [recording.operator[event] for event in allocations["born"][len(made) :].tolist()]
    allocations["operator"][: len(made)] = [numbers.setdefault(each, len(numbers)) for each in made]
    # Whoever needs a workspace first is not to blame.
    allocations["operator"][allocations["category"] == Category.WORKSPACE] = 0
    return tuple(numbers)[1:]


# -- allocations, and what scans saw of them --------------------------------------------------------------------------


_Positioned = tuple[int, bool, Scan]
"""The event before which a scan was made, whether training came next, and the scan."""


def _positioned(recording: Recording, story: Story, scans: Sequence[Scan]) -> list[_Positioned]:
    """Scans in their order.

    Those from before a window that was kept are left out: what lay there then may be something else by now.
    """
    return [
        (int(recording.position[number]), story.leads_to_training[number], scans[value])
        for number, (kind, value, _) in enumerate(story.marks, 1)
        if kind is Kind.SCAN and recording.position[number] >= 0
    ]


def _pair(
    recording: Recording, events: Table, scans: Sequence[_Positioned], names: dict[str, int]
) -> tuple[Table, _Labels]:
    """Match allocations with their frees, and label what the scans saw."""
    alloc, free, free_completed = Action.ALLOC, Action.FREE, Action.FREE_COMPLETED  # found once, not for each event
    born = np.flatnonzero(recording.action == alloc)
    before = len(recording.before)
    table = np.zeros(before + len(born), ALLOCATION)
    table["category"] = _UNSEEN
    table["died"] = table["name"] = -1
    old, new = table[:before], table[before:]
    old["born"] = old["module"] = -1
    for i, each in enumerate(recording.before):
        old["address"][i], old["block"][i] = each.address, each.block
        old["requested"][i], old["stream"][i], old["pool"][i] = each.requested, each.stream, each.pool
    new["born"] = born
    for name in ("address", "stream"):
        new[name] = getattr(recording, name)[born]
    new["requested"], new["block"] = recording.size[born], recording.block[born]
    for name in ("phase", "module", "step", "pool"):
        new[name] = events[name][born]

    alive = {int(address): row for row, address in enumerate(old["address"])}
    pending: dict[int, int] = {}
    died = np.full(len(table), -1, np.int64)
    owner = np.full(len(events), -1, np.int32)
    labels = _Labels(table, names)
    row, upcoming = before, iter([*scans, (len(events) + 1, False, None)])
    due, trains, waiting = next(upcoming)
    actions, addresses = recording.action.tolist(), recording.address.tolist()
    for i, (action, address) in enumerate(zip(actions, addresses, strict=True)):
        while due <= i and waiting is not None:
            labels.apply(waiting, alive, i, trains)
            due, trains, waiting = next(upcoming)
        if action == alloc:
            alive[address] = owner[i] = row
            row += 1
        elif action == free:
            found = alive.pop(address, -1)
            if found >= 0:
                died[found] = i
                owner[i] = pending[address] = found
        elif action == free_completed:
            owner[i] = pending.pop(address, -1)
    while waiting is not None:
        labels.apply(waiting, alive, len(events), trains)
        due, trains, waiting = next(upcoming)
    table["died"] = died
    events["allocation"] = owner
    return table, labels


@dataclass
class _Labels:
    """Puts what scans saw into the table; where two disagree, the first category in ``Category``'s order holds."""

    table: Table
    names: dict[str, int]
    seen: Seen = field(default_factory=Seen)

    def __post_init__(self) -> None:
        self._category = self.table["category"]
        self._name = self.table["name"]

    def apply(self, scan: Scan, alive: dict[int, int], event: int, trains: bool) -> None:
        starts: list[int] | None = None
        category = _UNSEEN if scan.category is None else int(scan.category)
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
            says_where = False
            if category == Category.PARAMETER and self._category[row] == Category.GATHERED:
                continue  # as long as a parameter is whole, its module has that in the shard's place
            if scan.parts:
                self.seen.used.setdefault(row, []).append((event, *scan.parts[i]))
            if category == Category.COMMUNICATION:
                self.seen.exchanged.setdefault(row, []).append(event)
            elif category > Category.OTHER and category != Category.GATHERED:
                in_none = row not in self.seen.containers
                self.seen.hold(row, event, scan.names[i])
                # What put it into a list is another value's by now, and the list has it.
                says_where = in_none and row in self.seen.containers
            if category == Category.PARAMETER:
                (self.seen.trained if trains else self.seen.untrained)[row] = id(scan.names)
            elif category == Category.MODEL_COPY:
                self.seen.copies[row] = scan.names[i]
            if scan.is_idle:
                self.seen.idle[row] = scan.names[i]
                continue  # what a look that knows the model says of it comes first
            names_it = category < self._category[row] or (category > Category.OTHER and self._name[row] < 0)
            names_it |= (scan.is_of_model or says_where) and category == self._category[row]
            names_it |= says_where and self._category[row] == Category.INPUT
            if names_it and i < len(scan.names) and scan.names[i]:
                self._name[row] = self.names.setdefault(scan.names[i], len(self.names))
            self._category[row] = min(category, self._category[row])

    def _containing(self, address: int, starts: Sequence[int], alive: dict[int, int]) -> int:
        """A tensor may be a view into a larger allocation, such as a flat buffer of gradients."""
        at = bisect_right(starts, address)
        if not at:
            return -1
        row = alive[starts[at - 1]]
        return row if address < starts[at - 1] + self.table["block"][row] else -1


# -- what no scan saw --------------------------------------------------------------------------------------------------


def _settle(recording: Recording, story: Story, context: Contexts, table: Table, labels: _Labels) -> None:
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
    keeping = Keeping(recording, story, context, table, zone, labels.seen)
    for row, copied in keeping.swapped_in():
        category[row], table["name"][row] = Category.MODEL_COPY, labels.names.setdefault(copied, len(labels.names))
    keeping.take_back(_UNSEEN)
    for row, name in labels.seen.idle.items():
        if category[row] == _UNSEEN:
            category[row], table["name"][row] = Category.PARAMETER, labels.names.setdefault(name, len(labels.names))

    last = len(recording.action)
    ends = np.array([recording.position[each.end] if each.end >= 0 else last for each in story.zones], np.int64)
    outlives = (died < 0) | (died >= ends[zone])
    outlives &= ~(new & np.array([each.keeps_nothing for each in story.zones])[zone])
    category[results_of_collectives(labels.seen, context, category, zone, new & outlives)] = _UNSEEN
    cleared = new & (died >= 0) & (category == _UNSEEN)
    cleared[cleared] = context.clears[died[cleared]]
    category[cleared] = Category.WORKSPACE
    unseen = category == _UNSEEN
    workspace = unseen & np.isin(table["requested"], sorted(recording.workspace_sizes))
    category[workspace & ~_doubtful(table, workspace & new)] = Category.WORKSPACE
    unseen = category == _UNSEEN

    creates_graph = np.array([each.creates_graph for each in story.zones])[zone]
    in_forward = np.isin(zone_phase, (Phase.FORWARD, Phase.RECOMPUTE, Phase.EVALUATION))
    for_backward = in_forward | is_loss | creates_graph
    category[unseen & new] = Category.TEMPORARY
    category[unseen & new & outlives & for_backward] = Category.ACTIVATION
    loose = unseen & new & outlives & ~for_backward
    category[loose] = Category.OTHER
    category[loose & (zone_phase == Phase.OUTSIDE) & _of_a_batch(story, context, recording, table, zone)] = (
        Category.INPUT
    )
    measured = unseen & new & (died >= 0)
    measured[measured] = context.measures[born[measured]] & context.measures[died[measured]]
    if measured.any():
        category[measured] = Category.TEMPORARY
        table["name"][measured] = labels.names.setdefault(OF_MEASURING, len(labels.names))
    category[unseen & ~new] = Category.OTHER
    keeping.settle()


def _doubtful(table: Table, candidates: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Candidates for a workspace that are rather tensors of that size.

    A size alone says nothing: logits of 32,768 x 65 in float32 have the 8,519,680 bytes of one. The first of each
    stream and side of autograd that lives on is believed, if it came in the first step that asked for so much: there is
    one for each thread that multiplies, made in its first product, and never given back. Outside of every pass, where
    threads of the program may multiply, a size that is no power of two is believed. Wrong where a program keeps a
    tensor of just that size that it made before its first matrix product.
    """
    result = np.zeros(len(table), bool)
    first: dict[tuple[int, int, bool], int] = {}  # the step in which such a size was asked for first
    seen: set[tuple[int, int, bool]] = set()
    for row in np.flatnonzero(candidates):
        size = int(table["requested"][row])
        if size & (size - 1) and table["phase"][row] == Phase.OUTSIDE:
            continue
        key = size, int(table["stream"][row]), bool(table["phase"][row] in (Phase.BACKWARD, Phase.RECOMPUTE))
        step = first.setdefault(key, int(table["step"][row]))
        result[row] = key in seen or table["died"][row] >= 0 or table["step"][row] > step
        if not result[row]:
            seen.add(key)
    return result


def _of_a_batch(
    story: Story, context: Contexts, recording: Recording, table: Table, zone: Ints
) -> npt.NDArray[np.bool_]:
    """Whether allocations look like part of a batch that no model saw: made just before a forward, gone a step later.

    Wrong for what a program makes between steps, keeps over the next forward and drops within a step.
    """
    last_step = int(context.step.max(initial=0))
    next_forward = np.full(len(story.zones), -1, np.int64)  # event at which the next forward begins, if it's next
    following: dict[int, int] = {}  # that of the track's next zone
    for index in range(len(story.zones) - 1, -1, -1):
        each = story.zones[index]
        if each.phase in (Phase.FORWARD, Phase.EVALUATION):
            next_forward[index] = recording.position[each.begin]
        elif each.phase is Phase.OUTSIDE:
            next_forward[index] = following.get(each.track, -1)
        following[each.track] = int(next_forward[index])
    begins = next_forward[zone]
    died, step = table["died"], table["step"]
    if not len(context.step):
        return np.zeros(len(table), bool)
    gone_soon = (died >= begins) & (context.step[np.maximum(died, 0)] <= step + 1)
    in_the_last = (died < 0) & (step == last_step)  # nobody knows how long it would have lived
    of_a_batch: npt.NDArray[np.bool_] = (begins >= 0) & np.where(died >= 0, gone_soon, in_the_last)
    return of_a_batch
