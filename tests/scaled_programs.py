"""Tapes of programs of a few lines, at any size: for tests that need no torch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vramkit import Action, Tape
from vramkit.scaling.requests import Requests, requests_of
from vramkit.tape.events import ALLOCATION, EVENT

Op = tuple[str, int] | tuple[str, int, int]
"""("alloc", name, bytes), ("free", name) or ("flush", 0)."""


def tape_of(ops: Iterable[Op], *, before: tuple[int, ...] = ()) -> Tape:
    """The tape of a program; ``before`` are sizes of what was alive before it, named -1, -2, ..."""
    events, rows, place = [], [], {}
    for number, size in enumerate(before):
        place[-1 - number] = len(rows)
        rows.append([-1, -1, size])
    for op in ops:
        if op[0] == "alloc":
            place[op[1]] = len(rows)
            events.append((Action.ALLOC, len(rows), op[2]))
            rows.append([len(events) - 1, -1, op[2]])
        elif op[0] == "free":
            row = place.pop(op[1])
            rows[row][1] = len(events)
            events += [(Action.FREE, row, rows[row][2]), (Action.FREE_COMPLETED, row, rows[row][2])]
        else:
            events += [(Action.SEGMENT_FREE, -1, 2 << 20)] * 2
    table, allocations = np.zeros(len(events), EVENT), np.zeros(len(rows), ALLOCATION)
    for column, values in zip(("action", "allocation", "size"), zip(*events, strict=True), strict=True):
        table[column] = values
    for column, values in zip(("born", "died", "requested"), zip(*rows, strict=True), strict=True):
        allocations[column] = values
    allocations["block"] = allocations["requested"]
    return Tape(events=table, allocations=allocations)


def program(slopes: list[int], size: int) -> list[Op]:
    """Activations of a forward, each beside a weight's gradient, freed in reverse."""
    ops: list[Op] = [("alloc", number, 1000 + slope * size) for number, slope in enumerate(slopes)]
    for number in reversed(range(len(slopes))):
        ops += [("alloc", 100 + number, 5000), ("free", number)]
    return ops


def requests(ops: Iterable[Op], size: int, **settings: object) -> Requests:
    return requests_of(size, tape_of(ops, **settings))
