"""Gradients that are computed and thrown away: of a model whose output another one is trained on, and that is not
detached. Knows earlier forwards, and no other advice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ...tape.events import Category, Ints, Phase, Tape
from ...tape.owners import owners
from ...tape.usage import models_of
from ..scene import Scene, grouped
from .advised import Advice
from .earlier import made_by, model_name
from .retained import passed

_Mask = npt.NDArray[np.bool_]
_FEW = 3


class _Uses:
    """Which gradients an optimizer used, before they went.

    Args:
        tape: whose optimizers are known.
        backwards: of it.
    """

    def __init__(self, tape: Tape, backwards: npt.NDArray[np.void]) -> None:
        self._tape, self._backwards = tape, backwards
        self._steps = tape.passes[tape.passes["phase"] == Phase.OPTIMIZER]
        self.models = _models(tape)

    @cached_property
    def rows(self) -> Ints:
        """Gradients of parameters that optimizers have: of each optimizer's those of a few, as all fare alike."""
        table, names = self._tape.allocations, self._tape.names
        gradients = (table["category"] == Category.GRADIENT) & (table["born"] >= 0) & (table["name"] >= 0)
        made = np.unique(table["name"][gradients]).tolist()
        chosen: list[int] = []
        for trained in self._tape.optimizers:
            own = [name for name in made if names[name] in trained]
            chosen += own[:: max(1, len(own) // _FEW)]
        rows: Ints = np.flatnonzero(gradients & np.isin(table["name"], chosen))
        return rows

    def fate(self, row: int, backward: int) -> bool | None:
        """Whether an optimizer used a gradient after a backward; None: nothing tells."""
        name = self._tape.names[self._tape.allocations["name"][row]]
        numbers = [number for number, trained in enumerate(self._tape.optimizers, 1) if name in trained]
        died = int(self._tape.allocations["died"][row])
        after = self._steps["begin"] >= self._backwards["end"][backward]
        own = after & np.isin(self._steps["optimizer"], numbers)
        if died < 0:
            return True if own.any() else None
        return bool((own & (self._steps["begin"] < died)).any())


def _models(tape: Tape) -> Ints:
    """The model that each module is part of; the last stands for none."""
    result: Ints = np.append(models_of(tape.modules), -1).astype(np.int64)
    return result


def _not_detached(scene: Scene) -> Iterator[Advice]:
    """Models whose output other models are trained on, which sends gradients into them that no optimizer uses: as
    a generator's when its critic is trained. Only of forwards that were given nothing of a graph: through a critic the
    gradients of its generator come, and it has to have a graph.
    """
    tape, fates = scene.result.tape, scene.fates
    if len(tape.optimizers) < 2 or not len(fates.backwards) or not len(fates.forwards):
        return
    uses = _Uses(tape, fates.backwards)
    root_of = _models(tape)[owners(tape)]
    went: dict[int, list[tuple[int, int, bool | None]]] = {}  # of each model: forward, backward, whether it was trained
    for backward in range(len(fates.backwards)):
        trained = _trained_by(uses, scene, root_of, backward)
        if True not in trained.values():
            continue
        for root, is_used in trained.items():
            before = fates.forwards["end"] <= fates.backwards["begin"][backward]
            members = np.flatnonzero(before & (fates.forwards["module"] == root) & fates.forwards["made_graph"])
            if len(members) and fates.forwards["is_source"][members[-1]]:
                went.setdefault(root, []).append((int(members[-1]), backward, is_used))
    for root, every in went.items():
        if False not in [is_used for _, _, is_used in every]:
            continue
        unused = [(forward, backward) for forward, backward, is_used in every if is_used is not True]
        trains = {forward for forward, _, is_used in every if is_used is True}
        backwards = [backward for _, backward in unused]
        shared = bool(trains & {forward for forward, _ in unused})  # the model is trained on the same output, too
        if shared:
            kept, since = _retained(scene, root, backwards)
            cut = _made_for(scene, root, root_of, backwards)
            less = scene.less(np.where(kept | cut, scene.block, 0), np.where(cut, -1, since))
        else:
            discarded = np.zeros(len(fates.forwards), bool)
            discarded[[forward for forward, _ in unused]] = True
            made = made_by(scene, discarded) & (scene.category == Category.ACTIVATION) & ~_outputs(scene, discarded)
            less = scene.less_without_graph(
                made,
                np.where(_only_for(scene, discarded, root, root_of, backwards), scene.block, 0),
            )
        name = model_name(scene, root)
        yield Advice(
            saves=scene.saved_over_time(less),
            text=(
                f"detach {name}'s output where another model is trained on it (output.detach()), and call that "
                "backward() without retain_graph=True"
                if shared
                else f"run {name} under torch.no_grad() where another model is trained on its output"
            )
            + ": its gradients are computed there, and cleared before an optimizer used them",
            is_cause=True,
        )


def _trained_by(uses: _Uses, scene: Scene, root_of: Ints, backward: int) -> dict[int, bool | None]:
    """Of each model that a backward came through whether an optimizer then used its gradients; None: nothing tells."""
    tape, rows = scene.result.tape, uses.rows
    begin, end = (int(scene.fates.backwards[name][backward]) for name in ("begin", "end"))
    table, inside = tape.allocations[rows], tape.events["module"][begin:end]
    reached = uses.models[inside[inside >= 0]]
    added = (table["born"] < end) & ((table["died"] < 0) | (table["died"] >= end))
    added &= np.isin(root_of[rows], reached) | (table["born"] >= begin)
    result: dict[int, bool | None] = {}
    for row in rows[added].tolist():
        root, fate = int(root_of[row]), uses.fate(row, backward)
        known = result.get(root, False)
        result[root] = True if True in (fate, known) else None if None in (fate, known) else False
    result.pop(-1, None)
    return result


def _retained(scene: Scene, root: int, backwards: Sequence[int]) -> tuple[_Mask, Ints]:
    """What is kept of the graphs of all models but one, which another backward still needs; and the event before which
    some backwards would have freed it, each as it leaves its module.
    """
    fates = scene.fates
    others = (fates.forwards["module"] != root) & ~fates.is_used & fates.forwards["made_graph"]
    freed_in = np.full(len(fates.forwards) + 1, -1, np.int64)
    for backward in reversed(backwards):
        span = fates.backwards[backward]
        before = others & (fates.forwards["step"] == span["step"]) & (fates.forwards["end"] <= span["begin"])
        freed_in[:-1][before] = backward
    rows = (scene.category == Category.ACTIVATION) & (fates.user < 0) & (freed_in[fates.maker] >= 0)
    return rows, passed(scene, rows, freed_in[fates.maker])


def _made_for(scene: Scene, root: int, root_of: Ints, backwards: Sequence[int]) -> _Mask:
    """What some backwards make only because they go on into a model: its gradients, what computes them, and the
    gradient of its output, which is made in another model and gone in this one.
    """
    tape = scene.result.tape
    table, models, inside = tape.allocations, _models(tape), _born_in(scene, backwards)
    passing = inside & (scene.category == Category.TEMPORARY)
    of_model = models[table["module"]] == root
    handed = passing & ~of_model & (table["died"] >= 0) & (models[tape.events["module"][table["died"]]] == root)
    result: _Mask = (inside & (scene.category == Category.GRADIENT) & (root_of == root)) | (passing & of_model) | handed
    return result


def _born_in(scene: Scene, backwards: Sequence[int]) -> _Mask:
    """What some backwards made."""
    table, fates = scene.result.tape.allocations, scene.fates
    chosen = np.zeros(len(fates.backwards), bool)
    chosen[[*backwards]] = True
    at = np.searchsorted(fates.backwards["begin"], table["born"], side="right") - 1
    result: _Mask = (at >= 0) & chosen[at] & (table["born"] < fates.backwards["end"][at])
    return result


def _only_for(scene: Scene, discarded: _Mask, root: int, root_of: Ints, backwards: Sequence[int]) -> _Mask:
    """What is there only because some forwards of a model made graphs: these, the gradients, and what computes them."""
    rows = made_by(scene, discarded) & (scene.category == Category.ACTIVATION) & ~_outputs(scene, discarded)
    result: _Mask = rows | _made_for(scene, root, root_of, backwards)
    return result


def _outputs(scene: Scene, members: _Mask) -> _Mask:
    """What some forwards returned, as their models' outputs were as large: another model works on it, with a graph or
    without.
    """
    tape, fates = scene.result.tape, scene.fates
    table, forwards = tape.allocations, fates.forwards
    shapes = [module.output_shape for module in tape.modules]
    elements = np.array([*(np.prod(shape, dtype=np.int64) if shape else 0 for shape in shapes), 0], np.int64)
    size = np.append(elements[forwards["module"]], 0)[fates.maker]
    rows = np.append(members, False)[fates.maker] & (size > 0)
    rows &= (table["requested"] == 2 * size) | (table["requested"] == 4 * size)
    chosen = np.flatnonzero(rows & (table["born"] < np.append(forwards["end"], 0)[fates.maker]))
    found = np.zeros(len(table), bool)
    found[[group[-1] for group in grouped(chosen, fates.maker[chosen])]] = True
    return found


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (_not_detached,)
