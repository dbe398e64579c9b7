"""What a forward has left that the next one of its model replaces: results of layers that attributes, dicts of hooks or
outputs hold, and what the model returned. Knows earlier forwards, and no other advice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ...sizes import format_size
from ...tape.events import Category, Ints
from ..edits import Edit
from ..layout import counted
from ..scene import Scene
from .advised import Advice
from .earlier import model_name, part_of
from .outputs import returned_by
from .retained import passed

_Mask = npt.NDArray[np.bool_]
_FEW = 3
"""So many layers, at least, have to keep what they make: one could by chance."""


def _of_layers(scene: Scene) -> Iterator[Advice]:
    """What layers made, and what is there when nothing of their forward needs it any more: up to the layer after them
    without a graph, and with one up to their backward. The next forward replaces it. Not what grows from one forward to
    the next, as keys and values of earlier tokens do; nor what another model may work on.
    """
    fates, table = scene.fates, scene.result.tape.allocations
    found = _Replaced(scene)
    if not len(fates.forwards):
        return
    inside = (fates.maker >= 0) & (table["module"] >= 0)
    inside &= np.isin(scene.category, (Category.ACTIVATION, Category.OUTPUT, Category.TEMPORARY))
    rows = inside & found.outlives(found.needed_until) & found.is_replaced & ~_is_returned(scene)
    for root in np.unique(fates.forwards["module"][fates.maker[rows]]).tolist():
        own = rows & (np.append(fates.forwards["module"], -1)[fates.maker] == root)
        own &= np.append(found.is_alone | fates.is_used, False)[fates.maker]
        if not own.any() or _grows(scene, own, found):
            continue
        pairs = np.unique(np.stack([fates.maker[own], table["module"][own]]), axis=1)
        of_each = np.bincount(pairs[0], minlength=len(fates.forwards))
        own &= np.append(of_each >= _FEW, False)[fates.maker]
        if not own.any():
            continue
        has_graph = np.append(fates.is_used, False)[fates.maker]
        since = np.where(has_graph, passed(scene, own, np.append(found.backward, -1)[fates.maker]), 0)
        without = np.flatnonzero(own & ~has_graph)
        since[without] = _no_longer_used(scene, without)
        edit = Edit(np.where(own, scene.block, 0), since)
        made_in = [returned_by(scene, int(table["module"][row]), row) for row in _of_one(scene, own)]
        modules = np.unique(made_in).tolist()
        names = ", ".join(model_name(scene, each) for each in modules[:2])
        names += f" and {counted(len(modules) - 2, 'other')}" * (len(modules) > 2)
        yield Advice(
            saves=scene.saved(edit.smaller, edit.since),
            edit=None if has_graph[own].any() else edit,  # a backward would free it bit by bit
            text=f"drop what {names} made once their forward has used it, or keep what you need of it as "
            f".detach().cpu(): {format_size(_of_largest(scene, own))} of each forward are there until the next one "
            "replaces them: an attribute, a hook's dict, or output_hidden_states, output_attentions, use_cache",
            is_cause=True,
        )


def _last_output(scene: Scene) -> Iterator[Advice]:
    """What a model returned, or what was made of it, and a variable has while the model's next forward runs. Not what
    is as large as an input: the next forward may be given it.
    """
    fates, table = scene.fates, scene.result.tape.allocations
    if not len(fates.forwards):
        return
    found = _Replaced(scene)
    begins = np.append(fates.forwards["begin"], len(scene.result.tape.events))[found.following]
    rows = (fates.maker >= 0) & found.outlives(begins) & found.is_replaced & (fates.user < 0)
    rows &= (table["module"] < 0) | _is_returned(scene)
    rows &= ~np.isin(table["requested"], table["requested"][scene.category == Category.INPUT])
    rows &= np.isin(scene.category, (Category.ACTIVATION, Category.OUTPUT, Category.TEMPORARY, Category.OTHER))
    for root in np.unique(fates.forwards["module"][fates.maker[rows]]).tolist():
        own = rows & (np.append(fates.forwards["module"], -1)[fates.maker] == root)
        edit = Edit(np.where(own, scene.block, 0), np.append(begins, 0)[fates.maker].astype(np.int64))
        yield Advice(
            saves=scene.saved(edit.smaller, edit.since),
            edit=edit,
            text=f"del what {model_name(scene, root)} returned, and what is made of it, before its next forward: "
            f"{format_size(_of_largest(scene, own))} of the one before are there while that runs",
            is_cause=True,
        )


class _Replaced:
    """Of each forward what comes after it, and of each allocation whether the next forward replaces it."""

    def __init__(self, scene: Scene) -> None:
        fates, table, passes = scene.fates, scene.result.tape.allocations, scene.result.tape.passes
        forwards, count = fates.forwards, len(scene.result.tape.events)
        self._scene = scene
        self.following = np.full(len(forwards), -1, np.int64)
        """The next forward of the same model; -1: none."""
        self.is_alone = np.ones(len(forwards), bool)
        """No other model runs before that."""
        self.backward = np.full(len(forwards), -1, np.int64)
        """The last backward that used it; -1: none."""
        for backward, members in fates.together.items():
            self.backward[members] = np.maximum(self.backward[members], backward)
        following: dict[int, int] = {}
        for index in range(len(forwards) - 1, -1, -1):
            root = int(forwards["module"][index])
            self.following[index] = following.get(root, -1)
            self.is_alone[index] = following.get(root, len(forwards)) == index + 1
            following[root] = index
        used = np.append(fates.backwards["end"], 0)[self.backward]
        self.needed_until = np.where(fates.is_used, used, forwards["end"]).astype(np.int64)
        """The event at which its backward has ended; without a graph the forward itself."""
        ends = np.append(forwards["end"], count)[self.following].astype(np.int64)
        begins = np.append(passes["begin"], count).astype(np.int64)
        until = begins[np.searchsorted(begins[:-1], ends)]  # up to there a loop sets its variables anew
        until = np.append(np.where(self.following < 0, count + 1, until), -1)[fates.maker]
        died = np.where(table["died"] < 0, count + 1, table["died"])  # later than the end of a forward that is the last
        # A forward that ran out of memory came to no end, and what it has made is waiting for that.
        ran_out = [fates.last_begun(failure.event) for failure in scene.result.out_of_memory]
        self.is_replaced = (fates.maker >= 0) & (died <= until) & ~np.isin(fates.maker, ran_out)
        self._died = died

    def outlives(self, event: Ints) -> _Mask:
        """Of each allocation whether it is there longer than up to an event of its forward."""
        fates = self._scene.fates
        is_known = fates.is_used | ~fates.forwards["made_graph"]
        result: _Mask = (self._died > np.append(event, 0)[fates.maker]) & np.append(is_known, False)[fates.maker]
        return result & (fates.maker >= 0)


def _is_returned(scene: Scene) -> _Mask:
    """Which allocations are as large as what their forward's model returned, and come last in it."""
    fates, tape = scene.fates, scene.result.tape
    table, modules = tape.allocations, tape.modules
    shapes = [modules[root].output_shape if root >= 0 else () for root in fates.forwards["module"].tolist()]
    elements = np.array([*(np.prod(shape, dtype=np.int64) if shape else 0 for shape in shapes), 0], np.int64)
    size = elements[fates.maker]
    rows = (fates.maker >= 0) & (size > 0) & (table["module"] >= 0)
    width = table["requested"] / np.maximum(size, 1)
    has_graph = np.append(fates.forwards["made_graph"], True)[fates.maker]
    rows &= np.isin(width, (2, 4)) | (np.isin(width / scene.part_of_first_batch, (2, 4)) & ~has_graph)
    last = np.full(len(elements), -1, np.int64)
    chosen = np.flatnonzero(rows)
    last[fates.maker[chosen]] = chosen  # the last one is written last
    result: _Mask = rows & (last[fates.maker] == np.arange(len(rows)))
    return result


def _grows(scene: Scene, rows: _Mask, found: _Replaced) -> bool:
    """Whether what layers keep is larger from forward to forward, in most of them: it is made of what was kept."""
    fates, table = scene.fates, scene.result.tape.allocations
    kept = np.bincount(fates.maker[rows], table["requested"][rows], len(fates.forwards))
    pairs = np.flatnonzero((kept > 0) & (found.following >= 0))
    following = kept[found.following[pairs]]
    return bool(len(pairs)) and 2 * int((following > kept[pairs]).sum()) > len(pairs)


def _no_longer_used(scene: Scene, rows: Ints) -> list[int]:
    """Of what layers made without a graph the event at which it would be gone: what a module returned, when the next
    one beside it has returned; the rest when the module has.
    """
    tape, fates = scene.result.tape, scene.fates
    module, parts = tape.events["module"], dict[int, _Mask]()
    known, found = dict[tuple[int, ...], int](), list[int]()
    for row in rows.tolist():
        born, forward = int(tape.allocations["born"][row]), int(fates.maker[row])
        begin, end = int(fates.forwards["begin"][forward]), int(fates.forwards["end"][forward])
        key = int(fates.forwards["module"][forward]), int(tape.allocations["module"][row]), born - begin, end - begin
        if key not in known:
            own = int(tape.allocations["module"][row])
            is_output = scene.is_as_output(row, own)
            own = returned_by(scene, own, row) if is_output else own
            for each in (own, tape.modules[own].parent):
                if each not in parts:
                    parts[each] = part_of(scene, each)
            events = module[born:end]
            left = np.flatnonzero(~parts[own][events])
            if is_output and len(left):
                beside = np.flatnonzero(parts[tape.modules[own].parent][events] & ~parts[own][events])
                beside = beside[events[beside] != tape.modules[own].parent]
                left = left[:0]
                if len(beside):
                    child = int(events[beside[0]])
                    while tape.modules[child].parent != tape.modules[own].parent:
                        child = tape.modules[child].parent
                    if child not in parts:
                        parts[child] = part_of(scene, child)
                    left = beside[0] + np.flatnonzero(~parts[child][events[beside[0] :]])
            known[key] = int(left[0]) if len(left) else end - born
        found.append(born + known[key])
    return found


def _of_one(scene: Scene, rows: _Mask) -> list[int]:
    """Of some allocations those of the last forward that has any."""
    fates = scene.fates
    result: list[int] = np.flatnonzero(rows & (fates.maker == fates.maker[rows].max())).tolist()
    return result


def _of_largest(scene: Scene, rows: _Mask) -> int:
    """Bytes of some allocations that one forward has, at most."""
    of_each = np.bincount(scene.fates.maker[rows], scene.block[rows])
    return int(of_each.max(initial=0))


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (_of_layers, _last_output)
