"""A result and its moment, with what several rules of advice ask of them. Knows no rule."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..gpus import all_gpus
from ..tape.events import Category, Ints, Phase
from ..tape.memory import MemoryResult
from .edits import Replays
from .fates import Fates
from .moment import Moment

SIZES = (1, 2, 4, 8)
"""Bytes that a number can have."""
_KEPT = (Category.MODEL_COPY, Category.DATASET, Category.OUTPUT)
_OLDER = re.compile(r"\b(GTX|TITAN|Titan|RTX 20[5678]0|Quadro|[TPVKM]\d+|GV100)\b")
"""In the names of cards before Ampere, most of them."""
_FEW = 3
"""So many tensors, at least, are as large as parameters not by chance."""
_SEVERAL = 3
"""So many steps, at least, are more than two states of a program that are compared."""


@dataclass(frozen=True)
class Scene:
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

    @cached_property
    def phases(self) -> set[Phase]:
        return {Phase(int(phase)) for phase in np.unique(self.result.tape.events["phase"])}

    @cached_property
    def evaluates(self) -> bool:
        """Whether the moment is in evaluation."""
        return self.moment.phase is Phase.EVALUATION

    @cached_property
    def fates(self) -> Fates:
        return Fates(self.result.tape)

    @cached_property
    def replays(self) -> Replays:
        return Replays(self.result.tape)

    @cached_property
    def left_behind(self) -> npt.NDArray[np.bool_]:
        """What earlier forwards made, is alive at the moment, and no backward will use."""
        return self.fates.left_behind(self.moment.event, self.moment.alive, failed=self.moment.failed is not None)

    @cached_property
    def keeps_a_graph(self) -> bool:
        """Whether activations of several modules are alive: outputs alone belong to one or two."""
        kept = (self.category == Category.ACTIVATION) & self.moment.alive
        return len(np.unique(self.result.tape.allocations["module"][kept])) > 2

    @cached_property
    def piles_up(self) -> bool:
        """Whether activations of earlier forwards are alive, and nothing was ever done with them."""
        kept = (self.category == Category.ACTIVATION) & self.moment.alive
        earlier = self.result.tape.allocations["step"] < self.moment.step
        several = len(np.unique(self.result.tape.allocations["module"][kept & earlier])) > 2
        return Phase.BACKWARD not in self.phases and several

    @cached_property
    def trains(self) -> bool:
        """Whether a backward was seen; or memory ran out in a forward that kept a graph, and was the first."""
        if Phase.BACKWARD in self.phases:
            return True
        return self.moment.failed is not None and self.keeps_a_graph and not self.piles_up

    @cached_property
    def never_cleared(self) -> npt.NDArray[np.bool_]:
        """Gradients that outlived two steps of optimizers and are there when all is done, where others went with each
        step: no optimizer of the program has their parameters.
        """
        tape = self.result.tape
        table, gradients = tape.allocations, self.category == Category.GRADIENT
        ends = tape.passes["end"][tape.passes["phase"] == Phase.OPTIMIZER]
        until = np.where(table["died"] < 0, len(tape.events), table["died"])
        outlived = np.searchsorted(ends, until) - np.searchsorted(ends, table["born"])
        goes = gradients & (table["died"] >= 0) & (outlived == 1)
        stays = (table["died"] < 0) | (table["died"] >= int(tape.passes["end"].max(initial=0)))
        result: npt.NDArray[np.bool_] = gradients & stays & (outlived >= 2) & bool(goes.any())
        return result

    @cached_property
    def piled_copies(self) -> npt.NDArray[np.bool_]:
        """What is there of each of several steps as large as a model's parameters: their copies, or gradients, that a
        program keeps. Of each parameter's gradients the last one is its own.
        """
        table = self.result.tape.allocations
        found = np.zeros(len(table), bool)
        alive = self.moment.alive & (table["born"] >= 0)
        parameters = self.moment.alive & (self.category == Category.PARAMETER)
        sizes, whole = np.unique(table["requested"][parameters]), int(table["requested"][parameters].sum())
        many = max(_FEW, int(parameters.sum()) // 2)
        copies = np.isin(self.category, (*_KEPT, Category.OTHER, Category.INPUT))
        gradients = np.flatnonzero(alive & (self.category == Category.GRADIENT) & (table["name"] >= 0))
        own = len(gradients) - 1 - np.unique(table["name"][gradients][::-1], return_index=True)[1]
        for rows in (np.flatnonzero(alive & copies & (table["phase"] == Phase.OUTSIDE)), np.delete(gradients, own)):
            rows = rows[np.isin(table["requested"][rows], sizes)]
            steps, of = np.unique(table["step"][rows], return_inverse=True)
            much = np.bincount(of, table["requested"][rows], len(steps)) * 2 >= max(1, whole)
            much &= np.bincount(of, minlength=len(steps)) >= many
            if int(much.sum()) >= _SEVERAL:
                found[rows[much[of]]] = True
        return found

    @cached_property
    def lacks_bfloat16(self) -> bool:
        """Whether the card is older than capability 8.0, by its name. Without one it is taken for a newer one."""
        name = self.result.device_name
        known = next((gpu for gpu in all_gpus() if gpu.product == name), None)
        return _OLDER.search(name) is not None if known is None else known.capability < (8, 0)

    @cached_property
    def is_mostly_float32(self) -> bool:
        """Whether most of what modules returned, and is kept, is in float32."""
        requested = self.result.tape.allocations["requested"]
        known = np.isin(self.category, (Category.ACTIVATION, Category.OUTPUT)) & (self.of_output > 0)
        float32 = int(requested[known & (requested == 4 * self.of_output)].sum())
        half = int(requested[known & (requested == 2 * self.of_output)].sum())
        return float32 > 9 * half

    @cached_property
    def is_leaf(self) -> npt.NDArray[np.bool_]:
        """Of each module, and last of none, whether it is one without modules in it."""
        modules = self.result.tape.modules
        return np.append(~np.isin(np.arange(len(modules)), [each.parent for each in modules]), False)

    @cached_property
    def of_output(self) -> Ints:
        """Elements of what the module that made each allocation returns; 0: not known."""
        modules = self.result.tape.modules
        elements = [np.prod(m.output_shape, dtype=np.int64) if m.output_shape else 0 for m in modules]
        of_module: Ints = np.array([*elements, 0], np.int64)
        of_allocation: Ints = of_module[self.result.tape.allocations["module"]]
        return of_allocation

    def is_as_output(self, row: int, module: int) -> bool:
        """Whether an allocation is as large as what a module returns; without a graph of its forward's own batch."""
        shape = self.result.tape.modules[module].output_shape
        elements = int(np.prod(shape, dtype=np.int64)) if shape else 0
        requested = int(self.result.tape.allocations["requested"][row])
        forward = int(self.fates.maker[row])
        has_graph = forward < 0 or bool(self.fates.forwards["made_graph"][forward])
        parts = (1.0,) if has_graph else (1.0, float(self.part_of_first_batch[row]))
        return any(requested == width * part * elements > 0 for width in (2, 4) for part in parts)

    @cached_property
    def is_scratch(self) -> npt.NDArray[np.bool_]:
        """Temporaries of convolutions that are no results: workspaces."""
        table, modules = self.result.tape.allocations, self.result.tape.modules
        convolves = np.array([*("Conv" in module.kind for module in modules), False])[table["module"]]
        elements, requested = self.of_output, table["requested"].astype(np.int64)
        result: npt.NDArray[np.bool_] = (self.category == Category.TEMPORARY) & convolves & (elements > 0)
        for part in (np.ones(len(table)), self.part_of_first_batch):
            result &= (requested != 4 * part * elements) & (requested != 2 * part * elements)
        return result

    @cached_property
    def part_of_first_batch(self) -> npt.NDArray[np.float64]:
        """Of each allocation how many times as large its forward's batch is as that of the first call, as most of what
        the forward keeps is as many times as large as its modules' first outputs.
        """
        maker, elements = self.fates.maker, np.maximum(self.of_output, 1)
        part = self.result.tape.allocations["requested"] / (4 * elements)
        known = (self.category == Category.ACTIVATION) & (maker >= 0) & (self.of_output > 0)
        # Without a graph little is kept, and that need not be what layers returned: then what they made tells.
        made = np.isin(self.category, (Category.ACTIVATION, Category.OUTPUT, Category.TEMPORARY)) & (maker >= 0)
        made &= self.is_leaf[self.result.tape.allocations["module"]] & (self.of_output > 0)
        known = np.where(np.append(self.fates.forwards["made_graph"], True)[maker], known, made)
        found = np.ones(len(self.fates.forwards) + 1)
        if known.any():
            pairs, counts = np.unique(np.stack([maker[known], part[known]]), axis=1, return_counts=True)
            order = np.argsort(counts, kind="stable")  # the most frequent one is written last
            found[pairs[0][order].astype(np.int64)] = pairs[1][order]
            found[-1] = 1
        result: npt.NDArray[np.float64] = found[maker]
        return result

    def saved(self, weights: Ints, since: Ints | None = None) -> int:
        """Bytes saved if each allocation were smaller by its weight, from an event on."""
        return self.saved_over_time(self.less(weights, since))

    def less(self, weights: Ints, since: Ints | None = None) -> Ints:
        """Bytes that are not there at each moment if each allocation is smaller by its weight.

        Args:
            weights: bytes, of each allocation.
            since: of each allocation the event from which on it is smaller; None: its birth.
        """
        table = self.result.tape.allocations
        change = np.zeros(len(self.result.timeline), np.int64)
        begin, end = table["born"], np.where(table["died"] < 0, len(change), table["died"])
        if since is not None:
            begin = np.maximum(begin, since)
            weights = np.where(begin < end, weights, 0)
            begin = np.minimum(begin, len(change) - 2)
        np.add.at(change, begin + 1, weights)
        dead = table["died"] >= 0
        np.add.at(change, table["died"][dead] + 1, -weights[dead])
        return np.cumsum(change)

    def less_without_graph(self, made: npt.NDArray[np.bool_], weights: Ints | None = None) -> Ints:
        """Bytes that are not there at each moment if forwards keep nothing for a backward: two tensors of each stay
        while it and its loss run, what a layer is given and what it returns, and the largest are taken. Where it has
        temporaries, these are among the two, but for workspaces of convolutions, which are there beside both. What is
        gone before the graph is, a variable held, and would all the same. A module's call holds what it was given.

        Args:
            made: what the forwards made.
            weights: bytes of each allocation that are not there; None: all of those.
        """
        weights = np.where(made, self.block, 0) if weights is None else weights
        table, groups = self.result.tape.allocations, list[tuple[Ints, int, int]]()
        rows, passes = np.flatnonzero(made), np.append(self.result.tape.passes["begin"], len(self.result.timeline))
        made = made.copy()
        for group in grouped(rows, self.fates.maker[rows]):
            begin = int(self.fates.forwards["begin"][self.fates.maker[group[0]]])
            end = int(passes[np.searchsorted(passes, begin, side="right")])
            gone = (table["died"][group] >= 0) & (table["died"][group] < end)
            if 2 * self.block[group[gone]].sum() < self.block[group].sum():  # else the graph itself is gone by then
                made[group[gone]] = False
                group = group[~gone]
            groups.append((group, begin, end))
        less = self.less(np.where(np.isin(np.arange(len(made)), rows) & ~made, 0, weights))
        for group, begin, end in groups:
            first, last = np.searchsorted(table["born"], (begin, end))  # rows are in the order of their births
            passing = np.arange(first, last)
            was_made = np.isin(passing, rows)
            passing = passing[np.where(was_made, ~made[first:last], self.category[first:last] == Category.TEMPORARY)]
            passing = passing[~self.is_scratch[passing]]
            largest = [0, *np.sort(self.block[group])[-2:].tolist()]
            beside = self._alive_between(passing, begin, end)
            stays = np.clip(sum(largest) - beside, largest[-1], None)
            every = np.union1d(group, passing)
            stays = np.maximum(stays, self._held_by_calls(every, np.isin(every, group), begin, end))
            stays = np.minimum(self._alive_between(group, begin, end), stays)
            less[begin + 1 : end + 1] -= stays[1 : len(less) - begin]
        return less

    def _held_by_calls(self, rows: Ints, counts: npt.NDArray[np.bool_], begin: int, end: int) -> Ints:
        """Bytes that calls of modules hold before an event, and after each one from it up to another: what each was
        given, which is taken to be what the layer before its first one returned, and what the last layer returns.

        Args:
            rows: what a forward's layers made, without scratch, in the order of their births.
            counts: which of them to count.
            begin: event with which the forward begins.
            end: event with which it ends.
        """
        table, modules = self.result.tape.allocations, self.result.tape.modules
        held = np.zeros(end + 1 - begin, np.int64)
        inside = table["module"][rows] >= 0
        rows, counts = rows[inside], counts[inside]
        size = np.where(counts, self.block[rows], 0)
        calls, given, before = list[int](), list[int](), -1  # modules that run, what each was given, as places in rows
        for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(table["module"][rows])) + 1):
            if not len(run):
                continue
            output = int(run[len(run) - 1 - int(self.block[rows[run]][::-1].argmax())])
            chain, module = list[int](), int(table["module"][rows[run[0]]])
            while module >= 0:
                chain += [module] if modules[module].calls else []  # a ModuleList is not called
                module = modules[module].parent
            chain.reverse()
            same = next((i for i, pair in enumerate(zip(calls, chain, strict=False)) if pair[0] != pair[1]), None)
            same = min(len(calls), len(chain)) if same is None else same
            given = given[:same] + [before] * (len(chain) - same)
            calls = chain
            there = {each for each in (*given, before, output) if each >= 0}
            since = max(0, int(table["born"][rows[run[0]]]) + 1 - begin)
            held[since:] = int(size[[*there]].sum())
            before = output
        return held

    def _alive_between(self, rows: Ints, begin: int, end: int) -> Ints:
        """Bytes of some allocations that are alive before an event, and after each one from it up to another."""
        own = np.zeros(end + 1 - begin, np.int64)
        for column, sign in (("born", 1), ("died", -1)):
            when = self.result.tape.allocations[column][rows] + 1 - begin
            inside = (when > 0) & (when < len(own))
            np.add.at(own, when[inside], sign * self.block[rows[inside]])
        result: Ints = np.cumsum(own)
        return result

    def saved_over_time(self, less: Ints) -> int:
        """Bytes saved if so many were not there at each moment."""
        if self.moment.failed:
            return int(less[self.moment.event + 1])
        allocated = self.result.timeline.allocated
        return int(allocated.max() - (allocated - less).max())

    def at(self, mask: npt.NDArray[np.bool_]) -> int:
        """Bytes of some allocations that are alive at the moment."""
        return int(self.block[mask & self.moment.alive].sum())


def grouped(rows: Ints, key: Ints) -> list[Ints]:
    """Rows with the same key together, each group in their order; sorted once, as there can be as many keys as rows.

    Args:
        rows: of any table.
        key: of each of them.
    """
    order = np.argsort(key, kind="stable")
    begins = np.flatnonzero(np.diff(key[order])) + 1
    return [group for group in np.split(rows[order], begins) if len(group)]
