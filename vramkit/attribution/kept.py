"""What a program keeps beside its models: which batches are parts of a data set, which outputs are kept beyond their
step. Settled from what looks at the program's variables saw; knows no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..tape.events import Category, Ints, Phase, Table
from .context import Contexts, Story
from .recording import Kind, Recording

_LATER_STEPS = 2  # the last output is often still a variable's while the next step's forward runs
_LATER_FORWARDS = 3  # of the same model, without a graph: three inputs that are compared are run before any is used
_SMALL_PART = 8
_LARGE = 1 << 16  # bytes
_MOST_JOINED = 1000


@dataclass
class Seen:
    """What looks saw of allocations, by their rows; events are those before which the look came."""

    held: dict[int, int] = field(default_factory=dict)
    """Of those that variables held: the event of the last look that saw it."""
    containers: dict[int, set[str]] = field(default_factory=dict)
    """Of those that lay in a list or a dict: its name; and that of the list around it: of pairs, say."""
    used: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)
    """Of what models were given: the event, where in the storage it began, and its bytes, for each time."""

    trained: dict[int, int] = field(default_factory=dict)
    """Of those that were a model's parameters when training came next: which model's, by any number."""
    untrained: dict[int, int] = field(default_factory=dict)
    """The same of those that were when an evaluation came next, or nothing."""
    copies: dict[int, str] = field(default_factory=dict)
    """Of those that variables held as copies of a model: the name."""
    idle: dict[int, str] = field(default_factory=dict)
    """Of those that are a model's which had not run when it was looked at: the name."""
    exchanged: dict[int, list[int]] = field(default_factory=dict)
    """Of those that a collective read or wrote: the events before which it did."""

    def hold(self, row: int, event: int, name: str) -> None:
        """A variable held an allocation, under a name."""
        self.held[row] = event
        if name.endswith("]"):
            inner = name.rpartition("[")[0]
            outer, _, place = inner.rpartition("[")
            self.containers.setdefault(row, set()).update((inner, outer) if place[:-1].isdigit() else (inner,))


@dataclass
class Keeping:
    """Settles the categories of what the program keeps.

    Args:
        recording: raw events of one device.
        story: of its marks.
        context: of its events.
        table: its allocations.
        zone: of each allocation, as far as it was born in the recording.
        seen: what looks saw.
    """

    recording: Recording
    story: Story
    context: Contexts
    table: Table
    zone: Ints
    seen: Seen

    def __post_init__(self) -> None:
        zones = self.story.zones
        self._in_graph = np.array([z.phase is not Phase.OUTSIDE or z.is_loss for z in zones])[self.zone]
        new = self.table["born"] >= 0
        if self.recording.foreign is not None:  # what is only seen for the first time there was made elsewhere
            new[new] &= ~self.recording.foreign[self.table["born"][new]]
        self._in_graph &= new

    def swapped_in(self) -> Iterator[tuple[int, str]]:
        """Copies, with their names, that a model got in place of its parameters while it was evaluated: averages, say.

        What trains is in the model when it trains, although a variable may hold it in the meantime, too.
        """
        models = set(self.seen.trained.values())
        for row, name in self.seen.copies.items():
            if row not in self.seen.trained and self.seen.untrained.get(row) in models:
                yield row, name

    def take_back(self, unseen: int) -> None:
        """Take back what the look of tensors told of those that a model's pass has made: they only look so."""
        category = self.table["category"]
        alike = np.isin(category, (Category.MODEL_COPY, Category.DATASET, Category.OUTPUT)) & self._in_graph
        of_backward = alike & (self.table["phase"] == Phase.BACKWARD) & (category == Category.MODEL_COPY)
        category[alike & (self.table["phase"] != Phase.OPTIMIZER)] = unseen
        category[of_backward] = Category.GRADIENT

    def settle(self) -> None:
        """Tell data sets from batches, and kept outputs from activations."""
        category, name = self.table["category"], self.table["name"]
        for row in self._data_sets():
            category[row] = Category.DATASET
        category[self._unused_sets()] = Category.OTHER
        self._settle_graphs()
        category[self._batches()] = Category.DATASET
        outputs = [row for row in self.seen.held if category[row] == Category.ACTIVATION and self._is_kept(row)]
        lists = {name for row in outputs for name in self.seen.containers.get(row, ())}
        for row, names in self.seen.containers.items():
            if category[row] in (Category.ACTIVATION, Category.TEMPORARY) and names & lists:
                outputs.append(row)
        category[outputs] = Category.OUTPUT
        for row in self._joined():
            category[row] = Category.OUTPUT
        self._settle_alike()
        for row in self.seen.held:  # the variable of an activation says less than the module that made it
            if category[row] in (Category.ACTIVATION, Category.TEMPORARY, Category.WORKSPACE):
                name[row] = -1

    def _data_sets(self) -> list[int]:
        """Inputs that were made outside of every pass, and of which no step uses more than half."""
        found = []
        for row, uses in self.seen.used.items():
            if self.table["category"][row] != Category.INPUT:
                continue
            parts: dict[int, dict[int, int]] = {}
            for event, place, size in uses:
                parts.setdefault(self._step_at(event), {})[place] = size
            most = max(sum(each.values()) for each in parts.values())
            changes = len({frozenset(each) for each in parts.values()}) > 1
            if most * (2 if changes else _SMALL_PART) <= self.table["requested"][row]:
                found.append(row)
        return found

    def _unused_sets(self) -> npt.NDArray[np.bool_]:
        """What has rows like a batch's, and was gone before another forward began: targets that were joined, say. Where
        no model runs at all, nothing tells that.
        """
        born, died = self.table["born"], self.table["died"]
        begins = np.sort(np.concatenate([np.empty(0, np.int64), *self._begins.values()]))
        last = np.where(died < 0, len(self.context.step), died)
        result: npt.NDArray[np.bool_] = (self.table["category"] == Category.DATASET) & (born >= 0)
        result &= (np.searchsorted(begins, born) == np.searchsorted(begins, last)) & bool(len(begins))
        result[list(self.seen.used)] = False
        return result

    def _joined(self) -> list[int]:
        """What was made outside of the passes, as large as outputs that were there together: ``torch.cat`` of them.

        Assumes that nothing else is just as large as several of them; small ones are left out.
        """
        table, found = self.table, list[int]()
        size, born, died = table["requested"], table["born"], table["died"]
        without_graph = np.array([each.root >= 0 and not each.makes_graph for each in self.story.zones])
        sources = (born >= 0) & without_graph[self.zone] & (table["category"] == Category.ACTIVATION)
        sources |= table["category"] == Category.OUTPUT
        sources &= size >= _LARGE
        if not sources.any():
            return found
        candidates = (born >= 0) & ~self._in_graph & (size >= 2 * _LARGE)
        candidates &= np.isin(table["category"], (Category.TEMPORARY, Category.INPUT, Category.DATASET, Category.OTHER))
        candidates[list(self.seen.used)] = False
        for row in np.flatnonzero(candidates).tolist():
            alive = sources & (born < born[row]) & ((died < 0) | (died > born[row]))
            sizes = size[alive].tolist()[-_MOST_JOINED:]
            wanted = int(size[row])
            if len(sizes) > 1 and (sum(sizes) == wanted or _is_sum_of_two(wanted, sizes)):
                found.append(row)
                sources[row] = True
        return found

    def _batches(self) -> list[int]:
        """Inputs that are kept in a container of which no step uses more than a third: batches that all lie there.

        A half would not do: while a step makes its list of inputs, the list of the step before may still be there. What
        is used in the step alone that made it is kept after use, and is no data set.
        """
        inside: dict[str, list[int]] = {}
        for row, names in self.seen.containers.items():
            if self.table["category"][row] in (Category.INPUT, Category.OTHER):
                for name in names:
                    inside.setdefault(name, []).append(row)
        found: list[int] = []
        for rows in inside.values():
            steps, waited = dict[int, int](), False
            for row in rows:
                for step in {self._step_at(event) for event, _, _ in self.seen.used.get(row, ())}:
                    steps[step] = steps.get(step, 0) + int(self.table["requested"][row])
                    waited |= step > int(self.table["step"][row])
            if waited and len(steps) > 1 and 3 * max(steps.values()) <= self._together(rows):
                found += rows
        return found

    def _together(self, rows: Sequence[int]) -> int:
        """Bytes of some allocations that are there at once: a variable may hold another list in each step."""
        each = self.table[rows]
        dead = each[each["died"] >= 0]
        when = np.concatenate([each["born"], dead["died"]])
        change = np.concatenate([each["requested"], -dead["requested"]])
        return int(np.cumsum(change[np.argsort(when, kind="stable")]).max(initial=0))

    def _settle_graphs(self) -> None:
        """Activations of forwards that no module ran: made outside of the passes, gone in the backward that follows.

        Wrong for what a backward frees that was not made for it, such as a batch that nothing else holds any more.
        """
        table, zones = self.table, self.story.zones
        following: dict[int, int] = {}  # each track's next zone
        ends = np.full((len(zones), 2), -1, np.int64)
        position = self.recording.position
        for index in range(len(zones) - 1, -1, -1):
            zone = zones[index]
            after = following.get(zone.track, -1)
            if zone.phase is Phase.OUTSIDE and after >= 0 and zones[after].phase is Phase.BACKWARD:
                end = zones[after].end
                ends[index] = position[zones[after].begin], position[end] if end >= 0 else len(self.context.step)
            following[zone.track] = index
        begin, end = ends[self.zone].T
        died = table["died"]
        loose = np.isin(table["category"], (Category.INPUT, Category.OTHER)) & (table["born"] >= 0) & ~self._in_graph
        loose[list(self.seen.used)] = False
        table["category"][loose & (begin >= 0) & (died >= begin) & (died < end)] = Category.ACTIVATION

    def _is_kept(self, row: int) -> bool:
        """Whether variables held what a forward made longer than any pass needs it."""
        born, seen = int(self.table["born"][row]), self.seen.held[row]
        if self._step_at(seen) >= int(self.table["step"][row]) + _LATER_STEPS:
            return True
        begins = self._begins.get(self.story.zones[self.zone[row]].root)
        if begins is None:
            return False
        later, graphs = (np.searchsorted(each, [born, seen], side="right") for each in (begins, self._graphs))
        return bool(graphs[0] == graphs[1] and later[1] - later[0] >= _LATER_FORWARDS)

    @cached_property
    def _begins(self) -> dict[int, Ints]:
        """Of each model: the events before which its forwards begin."""
        begins: dict[int, list[int]] = {}
        for number, (kind, value, _) in enumerate(self.story.marks, 1):
            if kind is Kind.ROOT:
                begins.setdefault(value, []).append(int(self.recording.position[number]))
        return {root: np.array(positions, np.int64) for root, positions in begins.items()}

    @cached_property
    def _graphs(self) -> Ints:
        """The events before which a forward has made a graph, or a backward begins."""
        marks = enumerate(self.story.marks, 1)
        numbers = [number for number, (kind, _, _) in marks if kind in (Kind.GRAPH, Kind.BACKWARD)]
        return self.recording.position[np.array(numbers, np.int64)]

    def _step_at(self, event: int) -> int:
        steps = self.context.step
        return int(steps[min(event, len(steps) - 1)]) if len(steps) else 0

    def _settle_alike(self) -> None:
        """Not every step is looked at: what is made outside of the passes is like what other steps make there."""
        table = self.table
        keys = self._places()
        told: dict[tuple[int, ...], int] = {}
        for row, key in keys.items():
            if table["category"][row] > Category.OTHER:
                told.setdefault(key, row)
        for row, key in keys.items():
            if table["category"][row] in (Category.INPUT, Category.OTHER) and row not in self.seen.used:
                like = told.get(key)
                if like is not None and row not in self.seen.held:
                    table["category"][row], table["name"][row] = table["category"][like], table["name"][like]

    def _places(self) -> dict[int, tuple[int, ...]]:
        """Of what was made outside of the passes: after which pass, as which allocation since, and its size."""
        before: dict[int, tuple[int, int]] = {}
        last: dict[int, tuple[int, int]] = {}
        for index, zone in enumerate(self.story.zones):
            before[index] = last.get(zone.track, (-1, -1))
            if zone.phase is not Phase.OUTSIDE:
                last[zone.track] = int(zone.phase), zone.root
        counts: dict[int, int] = {}
        places: dict[int, tuple[int, ...]] = {}
        rows = np.flatnonzero((self.table["born"] >= 0) & ~self._in_graph)
        for row in rows.tolist():
            zone_index = int(self.zone[row])
            counts[zone_index] = counts.get(zone_index, 0) + 1
            places[row] = (*before[zone_index], counts[zone_index], int(self.table["requested"][row]))
        return places


def _is_sum_of_two(wanted: int, sizes: Sequence[int]) -> bool:
    seen: set[int] = set()
    for size in sizes:
        if wanted - size in seen:
            return True
        seen.add(size)
    return False
