"""Whole models, and parts of them: copies, data beside them, models that are done, layers that train nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ...sizes import format_size
from ...tape.events import Category, Phase
from ...tape.owners import owners
from ...tape.usage import models_of
from ..layout import counted
from ..scene import Scene
from ..tree import shown_name
from .advised import Advice

_Mask = npt.NDArray[np.bool_]
_HELD = {
    Category.PARAMETER: "parameters",
    Category.GRADIENT: "gradients",
    Category.OPTIMIZER_STATE: "optimizer state",
}


def _copies(scene: Scene) -> Iterator[Advice]:
    """Copies of a model or of a state. Assumes that they can lie on the CPU between the steps."""
    copies = scene.category == Category.MODEL_COPY
    if scene.at(copies):
        yield Advice(
            saves=scene.saved(np.where(copies, scene.block, 0)),
            text="keep copies of the model on the CPU (map_location='cpu', state_dict tensors .cpu()), or delete them: "
            f"{counted(int((copies & scene.moment.alive).sum()), 'tensor')} of {format_size(scene.at(copies))}",
            is_cause=True,
        )


def _data_sets(scene: Scene) -> Iterator[Advice]:
    """Data of which a step uses a part. Assumes that a batch of it is small beside it."""
    data = scene.category == Category.DATASET
    if scene.at(data):
        yield Advice(
            saves=scene.saved(np.where(data, scene.block, 0)),
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
        parts = [name for category, name in _HELD.items() if scene.at(kept & (scene.category == category))]
        by = "its optimizer holds it" if "optimizer state" in parts else "a variable, a cycle or a closure holds it"
        yield Advice(
            saves=scene.saved_over_time(scene.less(np.where(kept, scene.block, 0), end)),
            text=f"delete what refers to {shown_name(tape.modules[model].name, 60)}, which has not run since step "
            f"{since + 1}, and call gc.collect(): {by}, with {format_size(scene.at(kept))} of {', '.join(parts)}",
            is_cause=True,
        )


def _untrained(scene: Scene) -> Iterator[Advice]:
    """Models that get gradients, and that no optimizer has: a teacher's, say. Assumes that they need not train."""
    tape, fates = scene.result.tape, scene.fates
    models = np.append(models_of(tape.modules), -1).astype(np.int64)
    owner, gradients = models[owners(tape)], scene.category == Category.GRADIENT
    of_forward = models[fates.forwards["module"]]
    for model in np.unique(owner[scene.never_cleared & (owner >= 0)]).tolist():
        own = gradients & (owner == model)
        if (own & ~scene.never_cleared).any():
            continue
        made = (scene.category == Category.ACTIVATION) & (fates.maker >= 0)
        made[made] = of_forward[fates.maker[made]] == model
        name = shown_name(tape.modules[model].name, 60)
        yield Advice(
            saves=scene.saved_over_time(scene.less_without_graph(made, np.where(made | own, scene.block, 0))),
            text=f"run {name} under torch.no_grad(), if it is not to train: it gets gradients, which no step cleared",
            is_cause=True,
        )


def _frozen(scene: Scene) -> Iterator[Advice]:
    """Activations of layers whose parameters get no gradient, kept because what comes before them trains."""
    tape, fates = scene.result.tape, scene.fates
    if not fates.is_used.any() or scene.evaluates:
        return
    owner = owners(tape)
    trained, weighted = np.zeros((2, len(tape.modules) + 1), bool)
    trained[owner[scene.category == Category.GRADIENT]] = True
    weighted[owner[scene.category == Category.PARAMETER]] = True
    trained[-1] = weighted[-1] = False
    frozen = weighted & ~trained
    kept = (scene.category == Category.ACTIVATION) & (fates.user >= 0)
    inside = _within(scene, frozen, trained)
    rows = kept & inside[tape.allocations["module"]]
    if not trained.any() or not scene.at(rows) * 4 > scene.moment.breakdown.allocated:
        return
    gradients = (scene.category == Category.TEMPORARY) & (tape.allocations["phase"] == Phase.BACKWARD)
    gradients &= inside[tape.allocations["module"]]
    first = tape.allocations["module"][np.flatnonzero(kept & trained[tape.allocations["module"]])[:1]]
    before = shown_name(tape.modules[int(first[0])].name, 40) if len(first) else "what comes before"
    name = shown_name(tape.modules[int(np.flatnonzero(inside)[0])].name, 40)
    yield Advice(
        saves=scene.saved_over_time(scene.less_without_graph(rows, np.where(rows | gradients, scene.block, 0))),
        text=f"run {name}, whose layers are frozen, under torch.no_grad(), if {before} before it need not train: "
        f"its activations are kept only for that",
    )


def _within(scene: Scene, frozen: _Mask, trained: _Mask) -> _Mask:
    """Modules that have frozen parameters in them or in a part of them, and none that trains."""
    modules = scene.result.tape.modules
    has_frozen, has_trained = frozen.copy(), trained.copy()
    for index in range(len(modules) - 1, -1, -1):  # parents come first
        parent = modules[index].parent
        if parent >= 0:
            has_frozen[parent] |= has_frozen[index]
            has_trained[parent] |= has_trained[index]
    inside: _Mask = has_frozen & ~has_trained
    for index, module in enumerate(modules):
        if module.parent >= 0 and inside[module.parent]:
            inside[index] = True
    inside[-1] = False
    return inside


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (_copies, _data_sets, _idle_models, _untrained, _frozen)
