"""Losses that are summed before one backward. Knows earlier forwards, and no other advice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ...tape.events import Category, Ints, Phase
from ..scene import Scene
from .advised import Advice
from .earlier import model_name

_Mask = npt.NDArray[np.bool_]


def _summed(scene: Scene) -> Iterator[Advice]:
    """Several forwards of a model, each with its loss, before one backward. With a backward each, one graph is there at
    a time, and the gradients are there from the first on. A loss may come of several forwards, of which those before
    the last made a graph of gradients (create_graph=True): a meta-learner's inner steps.
    """
    fates = scene.fates
    current = fates.last_begun(scene.moment.event)
    groups, here = list[list[list[int]]](), list[list[int]]()
    for backward, every in fates.together.items():
        roots, counts = np.unique(fates.forwards["module"][every], return_counts=True)
        root = int(roots[counts.argmax()])
        members = [member for member in every if fates.forwards["module"][member] == root]
        if len(members) < 2:
            continue
        groups.append(_parts(scene, members, backward))
        if members[0] <= current and int(fates.backwards["end"][backward]) > scene.moment.event:
            if not fates.has_losses(members):
                return
            here = groups[-1]
    if not here:
        return
    count, name = sum(map(len, here)), model_name(scene, int(fates.forwards["module"][here[0][0]]))
    inner = max(map(len, here)) > 1
    if len(here) == 1 and not _has_inner_weights(scene, here[0]):
        return  # a penalty of gradients
    what = f"the graphs of {count:,} forwards of {name}" + ", and of their gradients (create_graph=True)," * inner
    if len(here) == 1:
        text = f"take fewer inner steps, or leave their second derivatives out (create_graph=False): {what}"
    else:
        text = f"call backward() on each loss, not on their sum: {what}"
    yield Advice(
        saves=scene.saved_over_time(_apart(scene, groups)) if len(here) > 1 else scene.at(_graph_of(scene, here[0])),
        is_computed=not inner,  # what second derivatives hold while they are computed nothing tells
        text=f"{text} are alive until one backward",
        is_cause=True,
    )


def _parts(scene: Scene, members: Sequence[int], backward: int) -> list[list[int]]:
    """Some forwards as their losses have them, for a backward: one after which gradients were computed, before the
    next, is of the same loss as that.
    """
    fates, parts = scene.fates, [[members[0]]]
    begins = [*fates.forwards["begin"][[*members[1:]]].tolist(), int(fates.backwards["begin"][backward])]
    for member, begin in zip(members, begins, strict=True):
        if parts[-1][-1] != member:
            parts[-1].append(member)
        between = (fates.backwards["begin"] >= fates.forwards["end"][member]) & (fates.backwards["end"] <= begin)
        if not between.any() and member != members[-1]:
            following = members[members.index(member) + 1]
            parts.append([following])
    return parts


def _has_inner_weights(scene: Scene, members: Sequence[int]) -> bool:
    """Whether parameters were made after some forwards: an inner step's, which the next forward works with."""
    table = scene.result.tape.allocations
    made = (scene.category == Category.PARAMETER) & (table["phase"] == Phase.FORWARD)
    return bool((made & np.isin(table["forward"].astype(np.int64) - 1, [*members])).any())


def _graph_of(scene: Scene, members: Sequence[int]) -> _Mask:
    """What some forwards and what followed them made for a backward, as that of gradients, and what they were given."""
    table = scene.result.tape.allocations
    given, made = scene.category == Category.INPUT, scene.category == Category.ACTIVATION
    made |= (scene.category == Category.PARAMETER) & (table["phase"] == Phase.FORWARD)  # weights of an inner step
    of = table["forward"].astype(np.int64) - ~given  # an input is of the forward that begins next
    result: _Mask = (given | made) & np.isin(of, [*members]) & (table["born"] >= 0)
    return result


def _apart(scene: Scene, groups: Sequence[Sequence[Sequence[int]]]) -> Ints:
    """Bytes that are not there at each moment if each loss of some groups has its own backward right after it."""
    fates, table = scene.fates, scene.result.tape.allocations
    begins, steps = fates.forwards["begin"], fates.forwards["step"]
    since = np.full(len(table), len(scene.result.tape.events), np.int64)
    early = np.full(int(steps.max()) + 1, len(scene.result.tape.events), np.int64)  # of each step: its first backward
    for parts in groups:
        for part, following in pairwise(parts):
            since[_graph_of(scene, part)] = begins[following[0]]
        if len(parts) > 1:
            early[steps[parts[0][0]]] = begins[parts[1][0]]
    less = scene.less(np.where(since < len(scene.result.tape.events), scene.block, 0), since)
    rows = np.flatnonzero((scene.category == Category.GRADIENT) & (table["step"] < len(early)) & (table["born"] >= 0))
    rows = rows[table["born"][rows] > early[table["step"][rows]]]
    change = np.zeros(len(less), np.int64)
    np.add.at(change, table["born"][rows] + 1, scene.block[rows])
    np.add.at(change, early[table["step"][rows]] + 1, -scene.block[rows])
    return less + np.cumsum(change)


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (_summed,)
