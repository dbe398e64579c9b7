"""Which modules hold more or less than before, at the level that tells most. Knows pairs; formats nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..reports.modules import PARTS, opened, part_of_category
from ..reports.tree import Node, merged_tree
from ..tape.events import Ints
from .pair import Pair, Side
from .rows import Difference, ModuleDifference

_NOTHING = np.zeros(len(PARTS), np.int64)


@dataclass
class Changed:
    """A node of the tree of both results' modules, in the columns of the report's table."""

    node: Node
    before: Ints
    """With everything inside it."""
    after: Ints
    own_before: Ints
    own_after: Ints
    children: list[Changed] = field(default_factory=list)
    """Those inside it in which anything changed."""
    only_own: bool = False

    @property
    def size(self) -> int:
        """Bytes that came or went, in its own and in each one inside it: a gain here does not hide a loss there."""
        return self._size

    def __post_init__(self) -> None:
        own = int(np.abs(self.own_after - self.own_before).sum())
        self._size = own + sum(child.size for child in self.children)

    def opened(self) -> list[Changed]:
        """Those inside it, and its own."""
        own = Changed(self.node, self.own_before, self.own_after, self.own_before, self.own_after, only_own=True)
        return self.children + [own] * bool(own.size)


def changed_modules(pair: Pair, limit: int) -> list[tuple[Changed, ModuleDifference]]:
    """The modules in which most came or went, each byte in one row, most changed first.

    Args:
        pair: two results.
        limit: how many rows, at most. What they leave out is the last row, without a name.
    """
    sums = [_sums(pair, side) for side in pair.sides]
    present = [np.isin(np.arange(len(pair.modules)), side.place) for side in pair.sides]
    roots = [_add_up(root, sums[0], sums[1]) for root in merged_tree(pair.modules)]
    rows = sorted(opened(roots, limit), key=lambda row: -row.size)[:limit]
    found = []
    for row in rows:
        members = row.node.members
        found.append(
            ModuleDifference(
                name=pair.starred[members[0]],
                kind=row.node.kind,
                count_before=int(present[0][members].sum()),
                count_after=int(present[1][members].sum()),
                own=row.only_own,
                parts=_parts(row.before, row.after),
            )
        )
    return list(zip(rows, found, strict=True))


def rest_of(pair: Pair, rows: list[ModuleDifference]) -> ModuleDifference:
    """What is in none of some rows."""
    before, after = (_sums(pair, side).sum(axis=0) for side in pair.sides)
    for row in rows:
        before -= [each.before for each in row.parts]
        after -= [each.after for each in row.parts]
    return ModuleDifference(name="", kind="", count_before=0, count_after=0, parts=_parts(before, after))


def _sums(pair: Pair, side: Side) -> Ints:
    """What each module itself holds, a column for each part; the last row: what is in none."""
    sums = np.zeros((len(pair.modules) + 1, len(PARTS)), np.int64)
    np.add.at(sums, (side.owner, part_of_category()[side.alive["category"]]), side.alive["requested"])
    return sums


def _add_up(node: Node, before: Ints, after: Ints) -> Changed:
    children = [_add_up(child, before, after) for child in node.children]
    own_before, own_after = before[node.members].sum(axis=0), after[node.members].sum(axis=0)
    return Changed(
        node,
        before=own_before + sum((child.before for child in children), _NOTHING),
        after=own_after + sum((child.after for child in children), _NOTHING),
        own_before=own_before,
        own_after=own_after,
        children=[child for child in children if child.size],
    )


def _parts(before: Ints, after: Ints) -> tuple[Difference, ...]:
    return tuple(
        Difference(name=name, before=int(one), after=int(other))
        for name, one, other in zip(PARTS, before, after, strict=True)
    )


def members_inside(node: Node) -> list[int]:
    """Places of all modules of a node and inside it."""
    found, pending = [], [node]
    while pending:
        each = pending.pop()
        found += each.members
        pending += each.children
    return found
