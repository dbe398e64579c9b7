"""Two results side by side: what is alive at each one's peak, with owners and names that mean the same in both.

Knows tapes and how they are matched; draws no conclusions.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..reports.tree import shown_name, starred_names
from ..tape.events import Ints, Module, Phase, Table
from ..tape.memory import MemoryResult
from ..tape.owners import owners
from ..tape.stacks import ENGINE
from .matching import label_of, match_lines, match_modules


@dataclass(frozen=True, eq=False)
class Side:
    """One of two results at its peak, or at another moment."""

    result: MemoryResult
    place: Ints
    """Of each of its modules the place in ``Pair.modules``."""
    event: int
    """Index of the event after which the moment is; -1: before the first one."""

    @cached_property
    def alive(self) -> Table:
        """The allocations that are alive then."""
        return self.result.tape.allocations[self._rows]

    @cached_property
    def owner(self) -> Ints:
        """Of each of these the module that it belongs to, by its place in ``Pair.modules``; -1: none."""
        return np.append(self.place, -1)[owners(self.result.tape)[self._rows]]

    @cached_property
    def line(self) -> Ints:
        """Of each of these the line that made it, index into the frames of the stacks, -1: none."""
        stacks = self.result.tape.stacks
        return np.full(len(self._rows), -1) if stacks is None else stacks.lines[self._rows].astype(np.int64)

    @cached_property
    def has_nodes_as_lines(self) -> bool:
        """Whether what a backward made has its node in place of a line of the program."""
        stacks = self.result.tape.stacks
        return stacks is not None and any(
            stacks.frames[line].file == ENGINE for line in np.unique(stacks.lines).tolist() if line >= 0
        )

    @cached_property
    def recomputed(self) -> Ints:
        """Places of the modules that a checkpoint ran again."""
        events = self.result.tape.events
        at = events["module"][(events["phase"] == Phase.RECOMPUTE) & (events["module"] >= 0)]
        return np.unique(self.place[at])

    @cached_property
    def shapes(self) -> dict[int, tuple[int, ...]]:
        """Of each module that was called the shape that it returned."""
        places = self.place.tolist()
        modules = zip(places, self.result.tape.modules, strict=True)
        return {place: module.output_shape for place, module in modules if module.output_shape}

    @property
    def peak_phase(self) -> Phase:
        """Where the program was at the peak."""
        tape = self.result.tape
        return Phase(int(tape.events["phase"][tape.peak_event])) if tape.peak_event >= 0 else Phase.OUTSIDE

    @property
    def peak_step(self) -> int:
        """The training step of the peak, from 0."""
        tape = self.result.tape
        return int(tape.events["step"][tape.peak_event]) if tape.peak_event >= 0 else 0

    @cached_property
    def _rows(self) -> Ints:
        return np.flatnonzero(self.result.tape.alive_at(self.event))


class Pair:
    """Two results of one device.

    Args:
        before: the earlier one.
        after: the later one.
    """

    def __init__(self, before: MemoryResult, after: MemoryResult) -> None:
        matched = match_modules(before.tape, after.tape)
        self.modules: tuple[Module, ...] = matched.modules
        """Of both, parents first."""
        self.before = Side(before, matched.before, before.tape.peak_event)
        self.after = Side(after, matched.after, after.tape.peak_event)
        self._lines: tuple[list[str], list[str]] | None = None
        if before.tape.stacks is not None and after.tape.stacks is not None:
            self._lines = match_lines(before.tape.stacks, after.tape.stacks)
        self._lines_of_backwards = self.before.has_nodes_as_lines == self.after.has_nodes_as_lines

    @property
    def sides(self) -> tuple[Side, Side]:
        """Before and after."""
        return self.before, self.after

    def at_the_same_place(self) -> Pair:
        """The same two, the earlier one not at its own peak but where the later one has it: phase, module and step.

        Where the peak has moved to another part of the step, this tells what there is more of at the place of the new
        one. What the earlier one never did is left out of the description of the place.
        """
        tape, after = self.before.result.tape, self.after
        if after.event < 0 or not len(tape.events):
            return self
        peak = after.result.tape.events[after.event]
        module = np.append(self.before.place, -1)[tape.events["module"]]
        here = tape.events["phase"] == peak["phase"]
        is_there = np.ones(len(tape.events), np.bool_)
        for each in (here, module == np.append(after.place, -1)[peak["module"]], tape.events["step"] == peak["step"]):
            if (is_there & each).any():
                is_there &= each
        pair = copy(self)
        event = int(np.where(is_there, tape.allocated, -1).argmax())
        pair.before = replace(self.before, event=event)
        return pair

    @cached_property
    def starred(self) -> list[str]:
        """Names of the modules, with ``*`` for the numbers of equal blocks; at last that of none."""
        return [*map(shown_name, starred_names(self.modules)), ""]

    def names(self, side: Side) -> list[str]:
        """What each name of a side's tape is called in both."""
        tape = side.result.tape
        index = {module.name: i for i, module in enumerate(tape.modules)}
        found = []
        for name in tape.names:
            module = index.get(name.rpartition(" of ")[2].rpartition(".")[0], -1)
            place = int(side.place[module]) if module >= 0 else -1
            found.append(label_of(name, self.starred, place))
        return found

    def line(self, side: Side) -> Ints:
        """Of each allocation that is alive on a side the line that made it, -1: none that is comparable.

        torch before 2.11 does not say which forward a node of a backward belongs to. Beside a recording that knows it,
        what the backwards made has no line in either.
        """
        if self._lines_of_backwards:
            return side.line
        return np.where(side.alive["phase"] == Phase.BACKWARD, -1, side.line)

    def lines(self, side: Side) -> list[str] | None:
        """What each frame of a side's stacks is called in both, at last that of none; None: not both have stacks."""
        return self._lines and self._lines[side is self.after]
