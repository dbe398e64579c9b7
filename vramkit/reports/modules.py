"""Which modules hold memory at a moment, at the level that tells most. Knows results; formats nothing."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np
from typing_extensions import Self

from ..tape.events import Category, Ints, Module
from ..tape.memory import MemoryResult
from ..tape.owners import owners
from .moment import Moment
from .tree import Node, merged_tree

_COLUMNS = {
    Category.PARAMETER: 0,
    Category.BUFFER: 0,
    Category.MODEL_COPY: 0,
    Category.GRADIENT: 1,
    Category.OPTIMIZER_STATE: 1,
    Category.ACTIVATION: 2,
}
"""Every other category goes to the last column, 3."""

PARTS = ("parameters", "kept", "activations", "rest")
"""What the columns are called, as in `ModuleRow`."""


def part_of_category() -> Ints:
    """The column of each category; shape ``(categories,)``."""
    return np.array([_COLUMNS.get(category, 3) for category in Category])


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRow:
    """What one module, or a row of equal ones, holds at a moment; bytes as asked for, the parts sum to ``holds``."""

    name: str
    """Qualified; ``*`` stands for the numbers of equal blocks: ``"GPT.blocks.*.up"``. Empty: what is in no module."""
    kind: str
    """Name of the class."""
    count: int = 1
    """How many modules this is."""
    own: bool = False
    """Without the modules inside it, which have rows of their own."""
    parameters: int = 0
    """Bytes of parameters and buffers."""
    kept: int = 0
    """Bytes of gradients and optimizer state."""
    activations: int = 0
    rest: int = 0
    """Bytes of everything else: temporaries, mostly."""
    calls: int = 0
    """How often each was called."""
    output_shape: tuple[int, ...] = ()
    """What all of them return; empty where they differ."""

    @property
    def holds(self) -> int:
        """Bytes that belong to it and are alive."""
        return self.parameters + self.kept + self.activations + self.rest


def module_rows(result: MemoryResult, moment: Moment, limit: int = 6) -> list[ModuleRow]:
    """The modules that hold most at a moment, each byte in one row.

    Starts from whole models, and opens the largest row again and again, while the rows within the limit still cover
    nine tenths of what the modules hold. So a chain of wrappers is passed through, and no row is part of another.

    Args:
        result: of which the moment is.
        moment: when.
        limit: how many rows, at most; what belongs to no module is one more.

    Returns:
        Largest first; last, with an empty name, what belongs to no module and what the limit left out.
    """
    tape = result.tape
    sums = np.zeros((len(tape.modules) + 1, len(PARTS)), np.int64)  # the last row: no module
    table = tape.allocations[moment.alive]
    np.add.at(sums, (owners(tape)[moment.alive], part_of_category()[table["category"]]), table["requested"])
    roots = [_add_up(root, sums) for root in merged_tree(tape.modules)]
    rows = opened(roots, limit)
    rows.sort(key=lambda row: -row.size)
    rest = sums[-1] + sum((row.total for row in rows[limit:]), np.zeros(4, np.int64))
    shown = [_row(held, tape.modules) for held in rows[:limit]]
    if rest.any():
        shown.append(_with_sums(ModuleRow(name="", kind=""), rest))
    return shown


@dataclass
class _Held:
    """What a node of the tree holds, in the four columns."""

    node: Node
    total: Ints
    """With everything inside it."""
    own: Ints
    children: list[_Held]
    """Those inside it that hold anything."""
    only_own: bool = False

    @cached_property
    def size(self) -> int:
        return int(self.total.sum())

    def opened(self) -> list[_Held]:
        own = [_Held(self.node, self.own, self.own, [], only_own=True)] if self.own.any() else []
        return self.children + own


class Openable(Protocol):
    """A row that can be replaced by rows for what is inside it."""

    @property
    def size(self) -> int:
        """How much it matters: as much as the rows inside it together."""

    @property
    def children(self) -> Sequence[Self]:
        """The modules inside it; none: it can't be opened."""

    def opened(self) -> list[Self]:
        """The rows that replace it."""


_Row = TypeVar("_Row", bound=Openable)


def opened(roots: Sequence[_Row], limit: int) -> list[_Row]:
    """The roots, the largest opened again and again while the largest rows still cover nine tenths of all.

    Args:
        roots: those of size 0 are left out.
        limit: how many rows are shown. More are returned, which together are what was opened.
    """
    enough = sum(root.size for root in roots) * 0.9
    rows = dict(enumerate(root for root in roots if root.size))
    sizes = sorted(row.size for row in rows.values())
    closed = [(-row.size, -number) for number, row in rows.items() if row.children]
    heapq.heapify(closed)  # the largest first; of equal ones the last
    number = len(rows)
    while closed:
        place = -heapq.heappop(closed)[1]
        row = rows[place]
        inside = row.opened()
        largest = sizes[-limit - 1 :]
        if row.size >= largest[0]:
            largest.remove(row.size)
        if sum(sorted(largest + [each.size for each in inside])[-limit:]) < enough:
            continue
        del rows[place]
        del sizes[bisect_left(sizes, row.size)]
        for each in inside:
            rows[number] = each
            insort(sizes, each.size)
            if each.children:
                heapq.heappush(closed, (-each.size, -number))
            number += 1
    return list(rows.values())


def _add_up(node: Node, sums: Ints) -> _Held:
    children = [_add_up(child, sums) for child in node.children]
    own = sums[node.members].sum(axis=0)
    total = own + sum((child.total for child in children), np.zeros(4, np.int64))
    return _Held(node, total, own, [child for child in children if child.size])


def _row(held: _Held, modules: Sequence[Module]) -> ModuleRow:
    members = [modules[i] for i in held.node.members]
    shapes = {module.output_shape for module in members}
    row = ModuleRow(
        name=held.node.name,
        kind=held.node.kind,
        count=len(members),
        own=held.only_own,
        calls=max(module.calls for module in members),
        output_shape=shapes.pop() if len(shapes) == 1 else (),
    )
    return _with_sums(row, held.total)


def _with_sums(row: ModuleRow, sums: Ints) -> ModuleRow:
    parameters, kept, activations, rest = (int(size) for size in sums)
    return replace(row, parameters=parameters, kept=kept, activations=activations, rest=rest)
