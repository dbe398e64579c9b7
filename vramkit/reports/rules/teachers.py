"""Models, and parts of them, that run with gradients and need not: teachers, and layers that are frozen. Knows earlier
forwards, and no other advice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ...tape.events import Category, Phase
from ...tape.owners import owners
from ..layout import counted
from ..scene import Scene
from ..tree import shown_name
from .advised import Advice
from .earlier import keeps_graph, made_by, model_name, part_of

_Mask = npt.NDArray[np.bool_]
_FEW = 3
"""So many layers, at least, have to keep what they make: one could by chance."""


def _teachers(scene: Scene) -> Iterator[Advice]:
    """Models that run in training steps, and whose graphs no backward ever uses; or not those of some of their
    forwards. Where such graphs pile up from step to step, what keeps them is named instead.
    """
    fates = scene.fates
    piled = keeps_graph(scene, scene.left_behind) & ~fates.is_teachers
    for root in np.unique(fates.forwards["module"][fates.is_idle]).tolist():
        idle = fates.is_idle & (fates.forwards["module"] == root)
        made = made_by(scene, idle) & (scene.category == Category.ACTIVATION)
        of_root = (fates.forwards["module"] == root) & (fates.forwards["phase"] == Phase.FORWARD)
        several = (of_root & ~idle).any()
        if len(np.unique(fates.forwards["step"][piled & idle])) > 1:
            continue
        yield Advice(
            saves=scene.saved_over_time(scene.less_without_graph(made)),
            text=f"run {model_name(scene, root)} under torch.no_grad()"
            + (
                f" where nothing trains on its output: of its {int(of_root.sum()):,} forwards {int(idle.sum()):,} made "
                if several
                else f": its {counted(int(idle.sum()), 'forward')} made "
            )
            + "graphs, and no backward used one",
            is_cause=True,
        )


def _untrained(scene: Scene) -> Iterator[Advice]:
    """Models, and parts of them, that get gradients, and that no optimizer has: a teacher's, say. Assumes that they
    need not train.
    """
    tape, fates = scene.result.tape, scene.fates
    owner, gradients = owners(tape), scene.category == Category.GRADIENT
    never, cleared = np.zeros((2, len(tape.modules) + 1), bool)
    never[owner[scene.never_cleared]] = cleared[owner[gradients & ~scene.never_cleared]] = True
    never[-1] = cleared[-1] = False
    for module in _outermost(scene, _within(scene, never, cleared)):
        part = part_of(scene, module)
        of = _made_in(scene, module, part)
        if tape.modules[module].parent < 0 and fates.forwards["is_source"].any():
            # What is given a graph hands gradients on to what made it.
            of = of & np.append(fates.forwards["is_source"], False)[fates.maker]
        made = (scene.category == Category.ACTIVATION) & (fates.maker >= 0) & of
        whole = made_by(scene, part[fates.forwards["module"]] & fates.is_used) & (scene.category == Category.ACTIVATION)
        is_whole = bool((made >= whole).all())
        passing = (scene.category == Category.TEMPORARY) & (tape.allocations["phase"] == Phase.BACKWARD)
        own = ((gradients & part[owner]) | (passing & part[tape.allocations["module"]])) & is_whole
        yield Advice(
            saves=scene.saved_over_time(scene.less_without_graph(made, np.where(made | own, scene.block, 0))),
            text=f"run {shown_name(tape.modules[module].name, 60)} under torch.no_grad(), if it is not to train"
            + ", where it is given nothing of another model's graph (there requires_grad_(False), which saves more)"
            * (not is_whole)
            + ": it gets gradients, which no step cleared",
            is_cause=True,
        )


def _unused(scene: Scene) -> Iterator[Advice]:
    """Parts of a model that make a graph which no backward uses: a teacher in the model that is taught, say. Their
    parameters get no gradients, and what their layers make stays when they have returned, all of it, though nothing is
    freed of it in a backward. Assumes that no list is kept of what most of their layers return.
    """
    tape, fates = scene.result.tape, scene.fates
    owner, table = owners(tape), tape.allocations
    trained, weighted = np.zeros((2, len(tape.modules) + 1), bool)
    trained[owner[scene.category == Category.GRADIENT]] = True
    weighted[owner[scene.category == Category.PARAMETER]] = True
    trained[-1] = weighted[-1] = False
    if not fates.is_used.any():
        return
    used = np.append(fates.is_used, False)[fates.maker]
    events = tape.events
    parents = np.array([*(module.parent for module in tape.modules), -1])
    leaf = ~np.isin(np.arange(len(parents)), parents)
    for module in _outermost(scene, _within(scene, weighted & ~trained, trained)):
        part = part_of(scene, module)
        ran = np.flatnonzero(part[events["module"]] & (events["phase"] == Phase.FORWARD))
        rows = part[table["module"]] & used & (fates.user < 0) & (table["phase"] == Phase.FORWARD)
        if parents[module] < 0 or not rows.any():
            continue
        ends = np.append(fates.forwards["end"], 0)[fates.maker]
        left = np.append(ran, -1)[np.searchsorted(ran, ends) - 1]  # the part's last event in each forward
        kept = rows & ((table["died"] < 0) | (table["died"] > left))
        layers, keeping = (np.unique(table["module"][each & leaf[table["module"]]]) for each in (rows, kept))
        if len(keeping) < max(_FEW, len(layers) // 2 + 1):
            continue
        yield Advice(
            saves=scene.saved_over_time(scene.less_without_graph(kept)),
            text=f"run {shown_name(tape.modules[module].name, 60)} under torch.no_grad(): what {len(keeping)} of its "
            "layers make is kept for a graph, and no backward used it",
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
    if _alternate(scene, trained, inside):
        return  # as with LoRA: what is frozen hands on gradients to what trains before it, again and again
    rows = kept & inside[tape.allocations["module"]]
    if not trained.any() or not scene.at(rows) * 4 > scene.moment.breakdown.allocated:
        return
    gradients = (scene.category == Category.TEMPORARY) & (tape.allocations["phase"] == Phase.BACKWARD)
    gradients &= inside[tape.allocations["module"]]
    before = _first_before(scene, trained, inside)
    name = shown_name(tape.modules[int(np.flatnonzero(inside)[0])].name, 40)
    yield Advice(
        saves=scene.saved_over_time(scene.less_without_graph(rows, np.where(rows | gradients, scene.block, 0))),
        text=f"run {name}, whose layers are frozen, under torch.no_grad(), if {before} before it need not train: "
        f"its activations are kept only for that",
    )


def _alternate(scene: Scene, trained: _Mask, inside: _Mask) -> bool:
    """Whether several layers that train are followed by frozen ones each, in the moment's step."""
    events = scene.result.tape.events
    module = events["module"][(events["phase"] == Phase.FORWARD) & (events["step"] == scene.moment.step)]
    module = module[trained[module] | inside[module]]
    before = module[:-1][inside[module[1:]] & ~inside[module[:-1]]]
    return len(np.unique(before)) > 1


def _first_before(scene: Scene, trained: _Mask, inside: _Mask) -> str:
    """The first layer that trains and works before some others; where none does it is what the program does there."""
    events, modules = scene.result.tape.events, scene.result.tape.modules
    module = events["module"][(events["phase"] == Phase.FORWARD) & (events["step"] == scene.moment.step)]
    until = int(inside[module].argmax())
    first = module[:until][trained[module[:until]]][:1]
    return shown_name(modules[int(first[0])].name, 40) if len(first) else "what comes"


def _outermost(scene: Scene, inside: _Mask) -> list[int]:
    """Of some modules those that are part of no other of them."""
    modules = scene.result.tape.modules
    return [
        each for each in np.flatnonzero(inside).tolist() if modules[each].parent < 0 or not inside[modules[each].parent]
    ]


def _made_in(scene: Scene, module: int, part: _Mask) -> _Mask:
    """What a part of a model made, or a whole one and its loss."""
    tape, fates = scene.result.tape, scene.fates
    if tape.modules[module].parent >= 0:
        inside: _Mask = part[tape.allocations["module"]]
        return inside
    of: _Mask = np.append(part[fates.forwards["module"]], False)[fates.maker]
    return of


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


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (_teachers, _untrained, _unused, _frozen)
