"""What became of each forward's memory: which backward used it, what was left of it. Knows a tape, and no advice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..tape.events import Action, Category, Ints, Phase, Table, Tape

_Mask = npt.NDArray[np.bool_]
_FEW = 3
"""So many layers, at least, have to keep what they make: one could by chance."""
_SCALAR = 8  # bytes, at most


@dataclass(frozen=True)
class Fates:
    """The forwards of a tape, by their index in ``Tape.forwards``, and what was done with what they made."""

    tape: Tape

    @cached_property
    def forwards(self) -> Table:
        """Those of the tape."""
        return self.tape.forwards

    @cached_property
    def backwards(self) -> Table:
        """The backwards among its passes."""
        passes = self.tape.passes
        found: Table = passes[passes["phase"] == Phase.BACKWARD]
        return found

    @cached_property
    def maker(self) -> Ints:
        """Of each allocation the forward that made it, or whose loss did; -1: none did."""
        table = self.tape.allocations
        made = np.isin(table["phase"], (Phase.FORWARD, Phase.EVALUATION)) & (table["born"] >= 0)
        of: Ints = np.where(made, table["forward"].astype(np.int64) - 1, -1)
        return of

    @cached_property
    def user(self) -> Ints:
        """Of each allocation the backward in which it went, by its index in ``backwards``; -1: it went in none."""
        died, backwards = self.tape.allocations["died"], self.backwards
        if not len(backwards):
            return np.full(len(died), -1, np.int64)
        at = np.searchsorted(backwards["begin"], died, side="right") - 1
        inside = (died >= 0) & (at >= 0) & (died < backwards["end"][at])
        found: Ints = np.where(inside & (self.maker >= 0), at, -1)
        return found

    @cached_property
    def is_consumed(self) -> _Mask:
        """Of each allocation whether a backward went through its forward and took it. What a loss made is the last
        forward's before it, whose loss it need not be: a teacher's that runs after its pupil. So where several layers
        of a forward kept what they made, and a backward took nothing of that, it took nothing of its loss either.
        """
        table = self.tape.allocations
        taken = (table["category"] == Category.ACTIVATION) & (self.user >= 0)
        inside = (table["category"] == Category.ACTIVATION) & (self.maker >= 0) & (table["module"] >= 0)
        layers = np.unique(np.stack([self.maker[inside], table["module"][inside]]), axis=1)[0]
        of_layers = taken & inside
        untaken = np.bincount(layers, minlength=len(self.forwards)) >= _FEW
        untaken[self.maker[of_layers]] = False
        result: _Mask = taken & (of_layers | ~np.append(untaken, False)[self.maker])
        return result

    @cached_property
    def is_used(self) -> _Mask:
        """Of each forward whether a backward went through what it made."""
        result = np.zeros(len(self.forwards), bool)
        result[self.maker[self.is_consumed]] = True
        return result

    @cached_property
    def is_idle(self) -> _Mask:
        """Of each forward whether it made a graph that no backward used, though one came later in its step: a teacher's
        that runs with gradients, or a validation's between two steps. A backward that freed nothing may have kept what
        it used. Of such a model a forward after the last backward, too, of which nothing is left at the end. What was
        given a graph, as a loss or a head, is none: it may keep nothing that a backward frees, and hands gradients on.
        """
        forwards, backwards = self.forwards, self.backwards
        first = np.searchsorted(backwards["begin"], forwards["end"])
        last = np.maximum(np.searchsorted(backwards["step"], forwards["step"], side="right"), first)
        freed = np.zeros(len(backwards) + 1, np.int64)
        freed[[each + 1 for each in self.together]] = 1
        freed = np.cumsum(freed)
        waits = forwards["made_graph"] & (last > first) & (freed[last] - freed[first] == last - first)
        unused = forwards["made_graph"] & (forwards["phase"] == Phase.FORWARD) & ~self.is_used
        if forwards["is_source"].any():
            unused = unused & forwards["is_source"]
        result: _Mask = waits & unused
        left = np.bincount(self.maker[(self.maker >= 0) & (self.tape.allocations["died"] < 0)], minlength=len(forwards))
        ended = (first == len(backwards)) & (left == 0) & np.isin(forwards["module"], forwards["module"][result])
        result |= unused & ended & ~self.is_abandoned
        return result

    @cached_property
    def is_teachers(self) -> _Mask:
        """Of each forward whether it and all others of its model in training steps are idle."""
        trains = self.forwards["phase"] == Phase.FORWARD
        busy = np.unique(self.forwards["module"][trains & ~self.is_idle])
        result: _Mask = self.is_idle & ~np.isin(self.forwards["module"], busy)
        return result

    @cached_property
    def is_abandoned(self) -> _Mask:
        """Of each forward whether it, or what followed it, ran out of memory, and another forward came after that."""
        result = np.zeros(len(self.forwards), bool)
        failures = np.flatnonzero(self.tape.events["action"] == Action.OOM)
        last = np.searchsorted(self.forwards["begin"], failures, side="right") - 1
        result[last[last >= 0]] = True
        result[-1:] = False
        return result

    @cached_property
    def together(self) -> dict[int, list[int]]:
        """Of each backward, by its index, the forwards that it used."""
        kept = self.is_consumed
        pairs = np.unique(np.stack([self.user[kept], self.maker[kept]]), axis=1)
        found: dict[int, list[int]] = {}
        for backward, forward in pairs.T.tolist():
            found.setdefault(backward, []).append(forward)
        return found

    @cached_property
    def in_step(self) -> Ints:
        """Of each forward that is no evaluation, as which of its model and its step it came, from 0; else -1."""
        counts: dict[tuple[int, int], int] = {}
        found = np.full(len(self.forwards), -1, np.int64)
        for index, each in enumerate(self.forwards):
            if each["phase"] == Phase.FORWARD:
                key = int(each["module"]), int(each["step"])
                found[index] = counts.get(key, 0)
                counts[key] = int(found[index]) + 1
        return found

    def has_losses(self, members: Sequence[int]) -> bool:
        """Whether each of some forwards has a loss of its own: a backward took, or could take, it apart from others."""
        return all(map(self._has_loss, members))

    def _has_loss(self, member: int) -> bool:
        """Whether a single number was computed of what a forward's last layer returned, before the next forward."""
        table, root = self.tape.allocations, int(self.forwards["module"][member])
        shape = self.tape.modules[root].output_shape if root >= 0 else ()
        if len(shape) > 0 and int(np.prod(shape[:-1], dtype=np.int64)) == 1:
            return False  # of one row everything is a single number
        rows = np.flatnonzero(self.maker == member)
        large = rows[(table["requested"][rows] > _SCALAR) & (table["module"][rows] >= 0)]
        return bool(len(large)) and bool((table["requested"][rows[rows > large[-1]]] <= _SCALAR).any())

    def last_begun(self, event: int) -> int:
        """The forward that had begun last at an event; -1: none had."""
        return int(np.searchsorted(self.forwards["begin"], event, side="right")) - 1

    def left_behind(self, event: int, alive: _Mask, *, failed: bool) -> _Mask:
        """What earlier forwards made, is alive at an event, and no backward will use.

        Args:
            event: index of it.
            alive: which allocations are alive then.
            failed: memory ran out there, so that nothing tells what would have been used: what a step's forwards made
                is taken for needed as far as other steps' forwards at its place were.
        """
        table, current = self.tape.allocations, self.last_begun(event)
        rows = alive & (self.maker >= 0) & (self.maker < current) & (self.user < 0)
        rows &= np.isin(table["category"], (Category.ACTIVATION, Category.OUTPUT))
        maker = np.maximum(self.maker, 0)
        if len(self.forwards):
            ended = failed or current == len(self.forwards) - 1
            step = self.forwards["step"][current]
            waits = ended & (self.forwards["step"] == step) & (self.forwards["phase"] == Phase.FORWARD)
            waits &= self.forwards["made_graph"] & ~self.is_abandoned
            others = self.forwards["step"] != step
            used = {*self.in_step[others & self.is_used].tolist()}
            if (others & (self.in_step >= 0)).any():
                waits &= np.isin(self.in_step, [*used])
            rows &= ~waits[maker]
        return rows
