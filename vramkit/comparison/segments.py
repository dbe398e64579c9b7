"""Which requests made reserved memory grow, and where two programs first ask for something else. Knows pairs.

Segments have no owner: whoever finds no free block that is large enough makes the allocator take one. So this says what
asked, and where the order of requests parts, and not that the one is to blame for the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from ..reports.sentences import CATEGORY_NAMES, place
from ..sizes import format_size
from ..tape.events import Action, Category, Ints, Phase
from ..tape.owners import owners
from .pair import Pair, Side
from .reasons import signed

_LARGE = (1 << 20) + 1  # bytes: what is smaller shares segments of 2 MiB, and many such requests differ without effect


def taken_for(pair: Pair) -> Iterator[str]:
    """For what most of the new segments were taken; nothing where no more are taken for any one module.

    Of each result the rises of the highest reserved memory are added up, each for the allocation that asked for it.
    With what was reserved at the start they sum to the peak of reserved memory.
    """
    before, after = (_rises(pair, side) for side in pair.sides)
    growth = {key: sum(after[key].values()) - sum(before.get(key, Counter()).values()) for key in after}
    key = max(growth, key=lambda each: growth[each], default=None)
    if key is None or growth[key] <= 0:
        return
    name, kind = key
    (asked, phase), _ = max((after[key] - before.get(key, Counter())).items(), key=lambda each: each[1])
    what = f"{name} ({kind})" if name else "what is in no module"
    yield (
        f"{signed(growth[key])} of segments for {what}: {format_size(asked)} were asked for {place(Phase(phase))}, and "
        f"no free block was as large"
    )


def first_other(pair: Pair) -> str:
    """Where the requests of two results part: the first that is another one, or the largest that is kept for longer.

    Small ones are looked at where the large ones are the same.
    """
    return _first_other(pair, _LARGE) or _first_other(pair, 0) or _kept_for_longer(pair)


def _first_other(pair: Pair, least: int) -> str:
    """Where the requests of so many bytes or more part; empty: they are the same ones."""
    (before, rows_before), (after, rows_after) = (_requests(side, least) for side in pair.sides)
    common = min(len(before), len(after))
    others = np.flatnonzero((before[:common] != after[:common]).any(axis=1))
    at = int(others[0]) if len(others) else common
    if at < len(after):
        was = f"; it was {_request(pair, pair.before, rows_before[at])}" if at < len(before) else ""
        return f"the first request that is another one is {_request(pair, pair.after, rows_after[at])}{was}"
    if at < len(before):
        return f"what was asked for is no longer, from {_request(pair, pair.before, rows_before[at])} on"
    return ""


def _kept_for_longer(pair: Pair) -> str:
    """Of two results with the same requests, the largest that is kept for longer."""
    rows_before, rows_after = (_requests(side, 0)[1] for side in pair.sides)
    before, after = _ends(pair.before, rows_before), _ends(pair.after, rows_after)
    longer = after > before
    if not longer.any():
        if (after < before).any():
            return "the same is asked for in the same order, and some of it is freed earlier"
        return "the same is asked for and freed in the same order: the allocator's rules or settings are others"
    row = max(rows_after[longer].tolist(), key=lambda each: int(pair.after.result.tape.allocations["requested"][each]))
    return f"the same is asked for in the same order, and kept for longer: {_request(pair, pair.after, row)}"


def _rises(pair: Pair, side: Side) -> dict[tuple[str, str], Counter[tuple[int, int]]]:
    """Of each module, by its name and class, the bytes by which reserved memory rose for it: by request and phase."""
    tape = side.result.tape
    reserved = np.concatenate([[tape.initial_reserved], tape.reserved])
    rise = np.diff(np.maximum.accumulate(reserved))
    asked = np.flatnonzero(tape.events["action"] == Action.ALLOC)
    owner = np.append(side.place, -1)[owners(tape)]
    found: dict[tuple[str, str], Counter[tuple[int, int]]] = {}
    for event in np.flatnonzero(rise).tolist():
        next_one = int(np.searchsorted(asked, event))
        if next_one == len(asked):
            continue
        row = int(tape.events["allocation"][asked[next_one]])
        where = int(owner[row])
        key = (pair.starred[where], pair.modules[where].kind if where >= 0 else "")
        request = (int(tape.allocations["requested"][row]), int(tape.allocations["phase"][row]))
        found.setdefault(key, Counter())[request] += int(rise[event])
    return found


def _requests(side: Side, least: int) -> tuple[Ints, Ints]:
    """Of each request of so many bytes or more, in their order, the module and its bytes; and its row in the tape."""
    tape = side.result.tape
    rows = tape.events["allocation"][tape.events["action"] == Action.ALLOC].astype(np.int64)
    rows = rows[tape.allocations["requested"][rows] >= least]
    table = tape.allocations[rows]
    return np.stack([np.append(side.place, -1)[table["module"]], table["requested"]], axis=1), rows


def _ends(side: Side, rows: Ints) -> Ints:
    """How many requests had been made when each was freed; of one that was not, more than there are."""
    tape = side.result.tape
    made = np.cumsum(tape.events["action"] == Action.ALLOC)
    died = tape.allocations["died"][rows]
    return np.where(died < 0, len(rows) + 1, made[died])


def _request(pair: Pair, side: Side, row: int) -> str:
    """``"12.0 MiB (activations) in the forward of Net.mlp, step 1"``."""
    tape = side.result.tape
    one = tape.allocations[row]
    module = int(one["module"])
    name = pair.modules[int(side.place[module])].name if module >= 0 else ""
    category = CATEGORY_NAMES[Category(int(one["category"]))]
    return (
        f"{format_size(int(one['requested']))} ({category}) {place(Phase(int(one['phase'])), name)}, "
        f"step {int(one['step']) + 1}"
    )
