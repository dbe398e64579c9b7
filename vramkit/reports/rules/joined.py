"""Outputs that are joined with those before, forward after forward. Knows no other advice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ...sizes import format_size
from ...tape.events import Category, Ints, Phase, Table
from ..edits import Edit
from ..scene import Scene
from ..tree import shown_name
from .advised import Advice

_FEW = 3
"""So many tensors, at least, are a chain."""
_SAME = 3
"""So many times in a row, at least, a tensor has to grow by as much: batches of any length may grow, too."""
_LARGE = 1 << 16  # bytes
_TOGETHER = 4
"""Of so many outputs of a model, at most, each is joined with its own: then all of the older ones go."""


def _joined_outputs(scene: Scene) -> Iterator[Advice]:
    """Each forward's output makes a larger tensor of all, and the one before goes then: two are there at once."""
    fates, chain = scene.fates, _chain(scene)
    alive = chain[scene.moment.alive[chain]]
    if not len(alive):
        return
    edit = _moved(scene, chain)
    root = int(fates.forwards["module"][fates.maker[alive[-1]]])
    name = shown_name(scene.result.tape.modules[root].name, 60) if root >= 0 else "the model"
    yield Advice(
        saves=scene.saved(edit.smaller, edit.since),
        edit=edit,
        text=f"move {name}'s outputs to the CPU before they are joined (output.cpu(); eval_accumulation_steps=1 in "
        f"transformers' Trainer): all that is kept is copied in each forward, "
        f"{format_size(int(scene.block[alive].sum()))}",
        is_cause=True,
    )


def _joined_each_step(scene: Scene) -> Iterator[Advice]:
    """A tensor that each step replaces by a larger one, by as much each time: a history, joined after the model's
    passes. Assumes that what is joined can lie on the CPU.
    """
    table, steps = scene.result.tape.allocations, _SAME + 1
    kinds = (Category.OUTPUT, Category.DATASET, Category.OTHER, Category.INPUT, Category.TEMPORARY)
    rows = np.flatnonzero((table["module"] < 0) & np.isin(scene.category, kinds) & (table["phase"] == Phase.OUTSIDE))
    rows = rows[(table["born"][rows] >= 0) & (table["requested"][rows] >= _LARGE)]
    following = _following(table[rows])
    size, link = table["requested"][rows].astype(np.int64), np.full(len(rows), -1, np.int64)
    link[following[following >= 0]] = np.flatnonzero(following >= 0)
    chain: list[int] = []
    for each in np.flatnonzero((following < 0) & (link >= 0)).tolist():
        found = [each]
        while link[found[-1]] >= 0:
            found.append(int(link[found[-1]]))
        grown = -np.diff(size[found])
        if len(found) >= steps and (grown[:-1] == grown[-2]).all() and size[found[0]] > size[chain].sum():
            chain = found
    joined = np.zeros(len(table), bool)
    joined[rows[chain]] = True
    if not scene.at(joined):
        return
    yield Advice(
        saves=scene.saved(np.where(joined, scene.block, 0)),
        text=f"keep what each step adds in a list on the CPU, and join it once: {format_size(scene.at(joined))}"
        f"{_held_as(scene, rows[chain])} are copied to a larger tensor in each step",
        is_cause=True,
    )


def _following(table: Table) -> Ints:
    """Of each of some allocations the one that replaced it: larger, of a later step, and made last before it went; -1:
    none did.
    """
    found = np.full(len(table), -1, np.int64)
    until = np.searchsorted(table["born"], table["died"])
    for each in np.flatnonzero(table["died"] >= 0).tolist():
        other = int(until[each]) - 1
        if other > each and table["step"][other] > table["step"][each]:
            found[each] = other if table["requested"][other] > table["requested"][each] else -1
    result: Ints = found
    return result


def _held_as(scene: Scene, rows: Ints) -> str:
    names = [
        scene.result.tape.names[name] for name in scene.result.tape.allocations["name"][rows].tolist() if name >= 0
    ]
    return f" in {shown_name(names[0], 40)}" if names else ""


def _moved(scene: Scene, chain: Ints) -> Edit:
    """No joined tensor is made, and what their forwards returned is gone when it has been copied."""
    table, maker = scene.result.tape.allocations, scene.fates.maker
    joined = np.full(len(scene.fates.forwards) + 1, -1, np.int64)  # of each forward: when its output was joined
    joined[maker[chain]] = table["born"][chain]
    forwards, first = scene.fates.forwards, int(maker[chain].min())
    before = np.flatnonzero(forwards["module"][:first] == forwards["module"][first])[-1:]
    joined[before] = forwards["end"][before]  # the first output, with which nothing was joined yet
    since = np.where(maker >= 0, joined[maker], -1)
    returned = (since > table["born"]) & (table["module"] >= 0) & ((table["died"] < 0) | (table["died"] > since))
    returned &= np.isin(scene.category, (Category.ACTIVATION, Category.OUTPUT))
    since[chain] = -1
    returned[chain] = True
    return Edit(np.where(returned, scene.block, 0), since)


def _chain(scene: Scene) -> Ints:
    """Kept outputs that no layer made, each of which went as soon as a later forward had made a larger one; those that
    are of three in a row, at least.
    """
    table, fates = scene.result.tape.allocations, scene.fates
    rows = np.flatnonzero((scene.category == Category.OUTPUT) & (table["module"] < 0) & (fates.maker >= 0))
    born, died, size, maker = table["born"][rows], table["died"][rows], table["requested"][rows], fates.maker[rows]
    length, link = np.ones(len(rows), np.int64), np.full(len(rows), -1, np.int64)
    for each in np.flatnonzero(died >= 0).tolist():
        current = fates.last_begun(int(died[each]))
        until = int(np.searchsorted(born, died[each]))
        later = [
            other
            for other in range(max(each + 1, until - _TOGETHER), until)
            if maker[other] == current > maker[each] and size[other] > size[each]
        ]
        if later:
            following = min(later, key=lambda other: int(size[other]))
            if length[each] >= length[following]:
                length[following], link[following] = length[each] + 1, each
    found = np.zeros(len(rows), bool)
    for each in np.flatnonzero(length >= _FEW).tolist():
        while each >= 0 and not found[each]:
            found[each] = True
            each = int(link[each])
    return rows[found]


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (_joined_outputs, _joined_each_step)
