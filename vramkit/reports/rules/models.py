"""Whole models, and parts of them: copies, data beside them, models that are done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ...sizes import format_size
from ...tape.events import Category, Phase
from ...tape.owners import owners
from ...tape.usage import models_of
from ..edits import Edit
from ..layout import counted
from ..scene import Scene
from ..tree import shown_name
from .advised import Advice
from .earlier import containers

_Mask = npt.NDArray[np.bool_]
_LIST = 3
"""So many tensors of one size, at least, are a list of batches."""
_HELD = {
    Category.PARAMETER: "parameters",
    Category.GRADIENT: "gradients",
    Category.OPTIMIZER_STATE: "optimizer state",
}


def _piled_copies(scene: Scene) -> Iterator[Advice]:
    """Copies of parameters or gradients that each step adds to. Assumes that a step's own gradients stay until the next
    one, and that nothing else is made if copies lie on the CPU.
    """
    tape, rows = scene.result.tape, scene.piled_copies
    if not rows.any():
        return
    steps = tape.events["step"].astype(np.int64)
    next_step = np.searchsorted(np.maximum.accumulate(steps), tape.allocations["step"].astype(np.int64) + 1)
    gradients = scene.category == Category.GRADIENT
    edit = Edit(np.where(rows, scene.block, 0), np.where(gradients, next_step, -1))
    what = "gradients" if gradients[rows].all() else "copies of parameters or gradients"
    count = len(np.unique(tape.allocations["step"][rows]))
    yield Advice(
        saves=scene.saved(edit.smaller, edit.since),
        edit=edit,
        text=f"keep the numbers that are needed of each step's {what}, or .detach().cpu() of them: "
        f"{format_size(scene.at(rows))} of {count:,} steps are kept{containers(scene, rows)}, and more in each step",
        is_cause=True,
    )


def _copies(scene: Scene) -> Iterator[Advice]:
    """Copies of a model or of a state. Assumes that they can lie on the CPU between the steps: not so of a teacher, a
    reference or a target that runs.
    """
    tape, forwards = scene.result.tape, scene.fates.forwards
    models = np.append(models_of(tape.modules), -1).astype(np.int64)
    runs = np.isin(models[owners(tape)], models[forwards["module"]])
    copies = (scene.category == Category.MODEL_COPY) & ~scene.piled_copies & ~runs & ~_of_a_step(scene)
    if scene.at(copies):
        yield Advice(
            saves=scene.saved(np.where(copies, scene.block, 0)),
            edit=Edit(np.where(copies, scene.block, 0)),
            text="keep copies of the model on the CPU (map_location='cpu', state_dict tensors .cpu()), or delete them: "
            f"{counted(int((copies & scene.moment.alive).sum()), 'tensor')} of {format_size(scene.at(copies))}",
            is_cause=True,
        )


def _of_a_step(scene: Scene) -> npt.NDArray[np.bool_]:
    """What was made after a backward and before the next forward of the same step, and was gone a step later: weights
    that are moved for a second forward and moved back, as SAM's.
    """
    tape, passes = scene.result.tape, scene.result.tape.passes
    table, forwards = tape.allocations, scene.fates.forwards
    steps = np.append(tape.events["step"], 0).astype(np.int64)
    before = np.searchsorted(passes["begin"], table["born"], side="right") - 1
    following = np.searchsorted(forwards["begin"], table["born"], side="right")
    own = (table["born"] >= 0) & (before >= 0) & (following < len(forwards))
    if not own.any():
        return own
    own &= passes["phase"][before] == Phase.BACKWARD
    own &= forwards["step"][np.minimum(following, len(forwards) - 1)] == table["step"]
    last = int(steps.max(initial=0))
    gone = np.where(table["died"] >= 0, steps[table["died"]] <= table["step"] + 1, table["step"] >= last - 1)
    result: npt.NDArray[np.bool_] = own & gone
    return result


def _data_sets(scene: Scene) -> Iterator[Advice]:
    """Data of which a step uses a part. Assumes that a batch of it is small beside it; of a list of batches, all as
    large, one is on the device in each step, and so is what the step has made.
    """
    table = scene.result.tape.allocations
    data = (scene.category == Category.DATASET) & ~scene.piled_copies
    data &= (table["born"] < 0) | (table["step"] < scene.moment.step) | (scene.moment.step == 0)
    # A step's own batch is there beside the list, where the step runs the model on nothing else.
    forwards = scene.fates.forwards
    runs = int((forwards["step"] == scene.moment.step).sum())
    own = scene.moment.alive & (table["born"] >= 0) & (table["step"] == scene.moment.step) & ~data & (runs == 1)
    own &= np.isin(scene.category, (Category.DATASET, Category.INPUT))
    sizes, counts = np.unique(table["requested"][data & scene.moment.alive], return_counts=True)
    for size in sizes[(counts >= _LIST) & ~np.isin(sizes, table["requested"][own])].tolist():
        data[np.flatnonzero(data & (table["requested"] == size))[-1]] = False
    if scene.at(data):
        yield Advice(
            saves=scene.saved(np.where(data, scene.block, 0)),
            edit=Edit(np.where(data, scene.block, 0)),
            text="keep the data set on the CPU, and move each batch when it is used",
            is_cause=True,
        )


def _idle_models(scene: Scene) -> Iterator[Advice]:
    """Models that trained, have not run since, and are held while others train."""
    tape, fates = scene.result.tape, scene.fates
    models = np.append(models_of(tape.modules), -1).astype(np.int64)
    ran = models[fates.forwards["module"]]
    owner = models[owners(tape)]
    for model in np.unique(ran[fates.is_used]).tolist():
        last = int(np.flatnonzero(ran == model)[-1])
        later = np.unique(fates.forwards["step"][last + 1 :][fates.is_used[last + 1 :] & (ran[last + 1 :] != model)])
        since = int(fates.forwards["step"][last])
        later = later[later > since]
        if not len(later) or (len(later) < 2 and not scene.moment.failed):
            continue
        kept = (owner == model) & np.isin(scene.category, list(_HELD)) & scene.moment.alive
        if not scene.at(kept & (scene.category == Category.PARAMETER)):
            continue
        end = np.full(len(tape.allocations), int(fates.forwards["begin"][last + 1]), np.int64)
        edit = Edit(np.where(kept, scene.block, 0), end)
        parts = [name for category, name in _HELD.items() if scene.at(kept & (scene.category == category))]
        by = "its optimizer holds it" if "optimizer state" in parts else "a variable, a cycle or a closure holds it"
        yield Advice(
            saves=scene.saved(edit.smaller, edit.since),
            edit=edit,
            text=f"delete what refers to {shown_name(tape.modules[model].name, 60)}, which has not run since step "
            f"{since + 1}, and call gc.collect(): {by}, with {format_size(scene.at(kept))} of {', '.join(parts)}",
            is_cause=True,
        )


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (_piled_copies, _copies, _data_sets, _idle_models)
