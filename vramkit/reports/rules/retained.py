"""Graphs that a backward keeps. Knows earlier forwards, and no other advice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ...sizes import format_size
from ...tape.events import Category, Ints, Phase
from ..scene import Scene
from .advised import Advice
from .earlier import hands_on, inputs_of, keeper, made_by, model_name

_Mask = npt.NDArray[np.bool_]


def _retained(scene: Scene) -> Iterator[Advice]:
    """Graphs of which no backward of their step freed anything, and that are there until the next step's forward has
    made another, or as long as losses that are kept: what ``retain_graph=True`` keeps. Assumes that nothing needs them
    after the step's last backward, which would free each as it leaves its module: about there, so what is reserved then
    is not told.
    """
    fates = scene.fates
    current = fates.last_begun(scene.moment.event)
    if current < 0 or not len(fates.backwards):
        return
    forwards, backwards = fates.forwards, fates.backwards
    last = np.searchsorted(backwards["step"], forwards["step"], side="right") - 1
    retained = forwards["made_graph"] & (last >= 0) & (backwards["step"][last] == forwards["step"])
    retained &= (backwards["begin"][last] >= forwards["end"]) & ~np.isin(
        forwards["step"], forwards["step"][fates.is_used]
    )
    rows = made_by(scene, retained) & (scene.category == Category.ACTIVATION)
    here = np.unique(fates.maker[rows & scene.moment.alive & (fates.maker < current)])
    here = here[forwards["step"][here] != forwards["step"][current]]
    are_kept = len(np.unique(forwards["step"][here])) > 1
    if not len(here) or (are_kept and hands_on(scene, here)):
        return
    held = np.isin(fates.maker, here) & rows
    largest = here[np.bincount(fates.maker[held & scene.moment.alive], minlength=len(forwards))[here].argmax()]
    rows |= inputs_of(scene, here)
    maker = np.where(fates.maker < 0, keeper(scene, here), fates.maker)
    yield Advice(
        saves=scene.saved(np.where(rows, scene.block, 0), _passed(scene, rows, last[maker])),
        text=f"call backward() without retain_graph=True{', and keep float(loss) instead of loss' * are_kept}: "
        f"{format_size(scene.at(held))} of {f'the graphs of {len(here):,} forwards' if are_kept else 'the graph'} of "
        f"{model_name(scene, int(forwards['module'][largest]))} are there since "
        f"{'earlier steps' if are_kept else 'the step before'}, as no backward freed them "
        "(create_graph=True keeps it, too)",
        is_cause=True,
    )


def _passed(scene: Scene, rows: _Mask, backward: Ints) -> Ints:
    """Of some activations the event at which a backward has left the module that made them: it frees them there. Of
    inputs its end.
    """
    tape, backwards = scene.result.tape, scene.fates.backwards
    count = len(tape.modules) + 1
    events = np.flatnonzero((tape.events["phase"] == Phase.BACKWARD) & (tape.events["module"] >= 0))
    inside = np.searchsorted(backwards["begin"], events, side="right") - 1
    keys, at = np.unique((inside * count + tape.events["module"][events])[::-1], return_index=True)
    left = np.append(events[::-1][at], 0)
    since = backwards["end"][backward].astype(np.int64)
    wanted = backward * count + tape.allocations["module"]
    found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    known = rows & (keys[found] == wanted) if len(keys) else np.zeros(len(rows), bool)
    since[known] = left[found[known]] + 1
    return since


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (_retained,)
