"""Outputs that are joined with those before, forward after forward. Knows no other advice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ...sizes import format_size
from ...tape.events import Category, Ints
from ..scene import Scene
from ..tree import shown_name
from .advised import Advice

_FEW = 3
"""So many tensors, at least, are a chain."""
_TOGETHER = 4
"""Of so many outputs of a model, at most, each is joined with its own: then all of the older ones go."""


def _joined_outputs(scene: Scene) -> Iterator[Advice]:
    """Each forward's output makes a larger tensor of all, and the one before goes then: two are there at once."""
    fates, chain = scene.fates, _chain(scene)
    alive = chain[scene.moment.alive[chain]]
    if not len(alive):
        return
    weights = np.zeros(len(scene.block), np.int64)
    weights[chain] = scene.block[chain]
    root = int(fates.forwards["module"][fates.maker[alive[-1]]])
    name = shown_name(scene.result.tape.modules[root].name, 60) if root >= 0 else "the model"
    yield Advice(
        saves=scene.saved(weights),
        text=f"move {name}'s outputs to the CPU before they are joined (output.cpu(); eval_accumulation_steps=1 in "
        f"transformers' Trainer): all that is kept is copied in each forward, {format_size(scene.at(weights > 0))}",
        is_cause=True,
    )


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


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (_joined_outputs,)
