"""What models and their layers have returned and a program keeps, and where it had better be. Knows no other advice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ...sizes import format_size
from ...tape.events import Ints, Phase
from ..edits import Edit
from ..layout import counted
from ..scene import Scene, grouped
from .advised import Advice
from .earlier import container, containers, is_worth, keeps_graph, model_name, on_contexts, part_of, until_next

_Mask = npt.NDArray[np.bool_]
_MOST = 1000
"""Of so many tensors, at most, it is looked up when their modules were left."""
_LEAST = 400
"""What a layer returned has to be a larger part of what is there to be told with what others did."""


def _kept_outputs(scene: Scene) -> Iterator[Advice]:
    """Outputs of a model, or of layers in it, that are kept over several steps, or several forwards of evaluation. What
    one list or dict has of several layers is told together.
    """
    fates, rows = scene.fates, scene.left_behind
    if not len(fates.forwards):
        return
    table = scene.result.tape.allocations
    is_graph = keeps_graph(scene, rows) | fates.is_abandoned
    rows = rows & ~is_graph[np.maximum(fates.maker, 0)] & ~on_contexts(scene)
    chosen = np.flatnonzero(rows)
    found: dict[str, list[tuple[int, Ints]]] = {}  # by what holds it, or by its module: modules, and what is kept
    for group in grouped(chosen, table["module"][chosen].astype(np.int64)):
        if not is_worth(scene, group, _LEAST):
            continue
        members = np.unique(fates.maker[group])
        evaluates = (fates.forwards["phase"][members] == Phase.EVALUATION).any()
        if len(members) < 3 if evaluates else len(np.unique(fates.forwards["step"][members])) < 2:
            continue
        root, module = int(fates.forwards["module"][members[-1]]), int(table["module"][group[0]])
        module = returned_by(scene, module, int(group[-1]))
        held = container(scene, group).partition("[")[0] if module not in (root, -1) else ""
        if not held and module not in (root, -1):
            held = f" of {members.tolist()}"  # one graph has them, or hooks of one kind
        found.setdefault(held or str(module), []).append((module, group))
    for every in found.values():
        kept = np.zeros(len(rows), bool)
        kept[np.concatenate([group for _, group in every])] = True
        if is_worth(scene, np.flatnonzero(kept)):
            yield _of_kept(scene, [module for module, _ in every], kept)


def _of_kept(scene: Scene, modules: Sequence[int], kept: _Mask) -> Advice:
    """What some modules returned, and is kept."""
    fates, members = scene.fates, np.unique(scene.fates.maker[kept])
    root, maker = int(fates.forwards["module"][members[-1]]), np.maximum(fates.maker, 0)
    since, may_be_graphs = until_next(scene, members), False
    many = f"{counted(int(kept.sum()), 'tensor')} of {len(members):,} forwards, {format_size(scene.at(kept))}"
    many += f", are kept{containers(scene, kept, len(modules) > 1)}"
    if modules[0] in (root, -1):
        text = f"keep {model_name(scene, root)}'s outputs as output.detach().cpu(), or reduce each at once: {many}"
    else:
        names = [model_name(scene, module) for module in modules[:2]]
        name = ", ".join(names) + f" and {counted(len(modules) - 2, 'other')}" * (len(modules) > 2)
        text = f"keep what a hook or a list has of {name} as .detach().cpu(), or drop it: {many}"
        in_graph = kept & fates.forwards["made_graph"][maker]
        may_be_graphs = bool(in_graph.any()) and not containers(scene, kept, len(modules) > 1)
        if may_be_graphs:
            text += "; or a graph has them, of a running average, say: detach what goes into that"
            since = np.where(in_graph, _after_backward(scene, kept), since)
        without_graph = kept & ~fates.forwards["made_graph"][maker]
        since = np.where(without_graph, fates.forwards["end"][maker], since)
        if without_graph.any():
            kept = kept | _kept_now(scene, kept)
            rows = np.flatnonzero(kept & ~fates.forwards["made_graph"][maker])[-_MOST:]
            since[rows] = _left_after(scene, rows)
    edit = Edit(np.where(kept, scene.block, 0), since)
    saves = scene.saved(edit.smaller, edit.since)
    # A backward would free what a graph has bit by bit: what is reserved then is not told.
    return Advice(saves=saves, edit=None if may_be_graphs else edit, text=text, is_cause=True)


def _after_backward(scene: Scene, kept: _Mask) -> Ints:
    """Of what layers made, and no variable has, the end of the first backward after its forward: that needs it."""
    fates = scene.fates
    ends = np.append(fates.forwards["end"], 0)[fates.maker].astype(np.int64)
    following = np.searchsorted(fates.backwards["begin"], ends)
    last = np.append(fates.backwards["end"], len(scene.result.tape.events)).astype(np.int64)
    result: Ints = np.where(kept, last[following], len(scene.result.tape.events))
    return result


def _kept_now(scene: Scene, kept: _Mask) -> _Mask:
    """What the forward at the moment made, without a graph, as those before it made what is kept of them."""
    table, current = scene.result.tape.allocations, scene.fates.last_begun(scene.moment.event)
    if scene.fates.forwards["made_graph"][current]:
        return np.zeros(len(kept), bool)
    module, size = (table[name].astype(np.int64) for name in ("module", "requested"))
    like = np.unique(np.stack([module[kept], size[kept]]), axis=1)
    result: _Mask = scene.moment.alive & (scene.fates.maker == current) & ~kept
    rows = np.flatnonzero(result)
    result[rows] = [((like[0] == module[row]) & (like[1] == size[row])).any() for row in rows.tolist()]
    return result


def _left_after(scene: Scene, rows: Ints) -> list[int]:
    """The events at which forwards have left the modules that made some allocations; of what these returned, the
    modules around them.
    """
    tape, found, parts = scene.result.tape, list[int](), dict[int, _Mask]()
    for row in rows.tolist():
        module = int(tape.allocations["module"][row])
        if tape.allocations["requested"][row] in (2 * scene.of_output[row], 4 * scene.of_output[row]):
            module = tape.modules[module].parent
        if module not in parts:
            parts[module] = part_of(scene, module)
        born, end = int(tape.allocations["born"][row]), int(scene.fates.forwards["end"][scene.fates.maker[row]])
        left = np.flatnonzero(~parts[module][tape.events["module"][born:end]])
        found.append(born + int(left[0]) if module >= 0 and len(left) else end)
    return found


def returned_by(scene: Scene, module: int, row: int) -> int:
    """The outermost module inside a model that returns an allocation that a module made: it ends with that one."""
    tape, fates = scene.result.tape, scene.fates
    table = tape.allocations
    modules = tape.modules
    later = np.unique(table["module"][(fates.maker == fates.maker[row]) & (table["born"] > table["born"][row])])
    names = [modules[index].name for index in later.tolist() if index >= 0]
    while module >= 0 and modules[module].parent >= 0:
        parent = modules[modules[module].parent]
        if not scene.is_as_output(row, modules[module].parent):
            break
        own = modules[module].name
        others = [each for each in names if not f"{each}.".startswith(f"{own}.")]
        if any(each.startswith(f"{parent.name}.") for each in others):
            break
        module = modules[module].parent
    return module


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (_kept_outputs,)
