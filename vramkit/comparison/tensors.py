"""Which allocations came, went, or have another size. Knows pairs; formats nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np

from ..tape.events import Category, Phase
from .pair import Pair, Side
from .rows import Difference, TensorDifference

_Origin = tuple[str, bool, int, int, str]  # name, whether it is their own, category, phase (0: says nothing), line
_Makers = dict[tuple[_Origin, int], set[int]]  # of an origin and a size the operators, as the tape numbers them


def changed_tensors(pair: Pair) -> list[TensorDifference]:
    """Allocations at one peak that are not at the other, those of one origin together; the largest change first.

    Of changes of one size, what was not there before comes first: what only grew often did so because of it.

    Of one origin and one size, as many as both peaks have are left out. If what is left is of as many sizes before as
    after, and as many of each, it is the same tensors with other sizes.
    """
    (sizes_before, made_before), (sizes_after, made_after) = (_sizes(pair, side) for side in pair.sides)
    rows = []
    for origin in dict.fromkeys([*sizes_before, *sizes_after]):
        before, after = Counter(sizes_before.get(origin, {})), Counter(sizes_after.get(origin, {}))
        left, right = sorted((before - after).items()), sorted((after - before).items())
        if [count for _, count in left] == [count for _, count in right]:
            pairs = [*zip(left, right, strict=True)]
        else:
            pairs = [(each, (0, 0)) for each in left] + [((0, 0), each) for each in right]
        for one, other in pairs:
            # Not a part of the origin: another torch may make the same by another operator.
            made_by = _maker(pair.after, made_after, origin, other) or _maker(pair.before, made_before, origin, one)
            rows.append(_row(origin, one, other, made_by))
    return sorted(rows, key=lambda row: (-abs(row.difference), row.count_before))


def changed_lines(pair: Pair) -> list[Difference]:
    """Lines of source whose allocations hold more or less at the peak; the largest change first."""
    sums: list[Counter[str]] = [Counter(), Counter()]
    for total, side in zip(sums, pair.sides, strict=True):
        names = pair.lines(side)
        if names is None:
            return []
        for line, size in zip(pair.line(side).tolist(), side.alive["requested"].tolist(), strict=True):
            total[names[line]] += size
    found = [Difference(name=name, before=sums[0][name], after=sums[1][name]) for name in sums[0] | sums[1]]
    return sorted((each for each in found if each.name and each.difference), key=lambda each: -abs(each.difference))


def _maker(side: Side, makers: _Makers, origin: _Origin, allocations: tuple[int, int]) -> str:
    """The one operator that made allocations of a size without a name; empty: several did, or none is known."""
    size, count = allocations
    numbers = makers.get((origin, size), set()) if count and not origin[1] else set()
    number = numbers.pop() if len(numbers) == 1 else 0
    return side.result.tape.operators[number - 1] if number else ""


def _sizes(pair: Pair, side: Side) -> tuple[dict[_Origin, dict[int, int]], _Makers]:
    """Of each origin how many allocations of each size there are, and what made them."""
    labels, lines = pair.names(side), pair.lines(side) or [""]
    table = side.alive
    # Whoever comes first makes a library's workspace: where that was says nothing.
    made_there = (table["name"] < 0) & (table["category"] != Category.WORKSPACE)
    keys = np.stack(
        [
            table["name"].astype(np.int64),
            np.where(table["name"] < 0, side.owner, -1),
            table["category"].astype(np.int64),
            np.where(made_there, table["phase"], 0),
            np.where(made_there, pair.line(side), -1) if len(lines) > 1 else np.full(len(table), -1),
            table["requested"],
            table["operator"].astype(np.int64),
        ],
        axis=1,
    )
    unique, counts = np.unique(keys, axis=0, return_counts=True)
    found: dict[_Origin, dict[int, int]] = {}
    makers: _Makers = {}
    for (name, owner, category, phase, line, size, operator), count in zip(
        unique.tolist(), counts.tolist(), strict=True
    ):
        origin = (labels[name] if name >= 0 else pair.starred[owner], name >= 0, category, phase, lines[line])
        sizes = found.setdefault(origin, {})
        sizes[size] = sizes.get(size, 0) + count
        makers.setdefault((origin, size), set()).add(operator)
    return found, makers


def _row(origin: _Origin, before: tuple[int, int], after: tuple[int, int], operator: str) -> TensorDifference:
    name, named, category, phase, line = origin
    return TensorDifference(
        name=name,
        named=named,
        category=Category(category),
        phase=Phase(phase),
        line=line,
        operator=operator,
        count_before=before[1],
        size_before=before[0],
        count_after=after[1],
        size_after=after[0],
    )
