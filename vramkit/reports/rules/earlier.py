"""What earlier forwards left behind, and the remedy that follows from what happened to it; kept outputs are elsewhere.
Knows no other advice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ...sizes import format_size
from ...tape.events import OF_A_CONTEXT, Category, Ints, Phase, Table
from ..edits import Edit
from ..layout import counted
from ..scene import Scene, grouped
from ..sentences import place
from ..tree import shown_name
from .advised import Advice

_Mask = npt.NDArray[np.bool_]
_CLOSE = 0.1
"""Less than this part of a saving is not told apart."""
_LOOP = 3
"""So many forwards of a model in a row, at least, are a loop's, whose variables each of them sets."""


def _after_failures(scene: Scene) -> Iterator[Advice]:
    """What a forward that ran out of memory left, while another runs: its exception holds the frames."""
    fates = scene.fates
    rows = made_by(scene, fates.is_abandoned) & (scene.moment.alive & (fates.user < 0))
    rows &= np.isin(scene.category, (Category.ACTIVATION, Category.TEMPORARY, Category.OUTPUT))
    rows &= fates.maker < fates.last_begun(scene.moment.event)
    if rows.any():
        following = fates.forwards["begin"][np.minimum(fates.maker + 1, len(fates.forwards) - 1)].astype(np.int64)
        edit = Edit(np.where(rows, scene.block, 0), following)
        yield Advice(
            saves=scene.saved(edit.smaller, edit.since),
            edit=edit,
            text=f"leave the except clause before trying again: the exception keeps what {_root(scene, rows)} had made "
            f"when memory ran out, {counted(int(rows.sum()), 'tensor')} of {format_size(scene.at(rows))}",
            is_cause=True,
        )


def _graphs(scene: Scene) -> Iterator[Advice]:
    """Graphs that no backward went through: of evaluation, of losses that are only logged, of a state that is handed
    on. Assumes that under ``no_grad`` two tensors are there at once, what a layer is given and what it returns.
    """
    fates, rows = scene.fates, scene.left_behind
    is_graph = keeps_graph(scene, rows) & ~fates.is_teachers
    if Phase.BACKWARD not in scene.phases:
        return
    evaluates = fates.forwards["phase"] == Phase.EVALUATION
    made = fates.forwards["made_graph"] | (fates.forwards["has_grad"] & fates.forwards["was_left"])
    is_graph |= evaluates & made & (np.bincount(fates.maker[_activations(scene)], minlength=len(made)) > 1)
    for chosen, evaluation in ((is_graph & evaluates, True), (is_graph & ~evaluates, False)):
        for root in np.unique(fates.forwards["module"][chosen]).tolist():
            members = np.flatnonzero(chosen & (fates.forwards["module"] == root))
            kept = (_activations(scene) if evaluation else rows) & np.isin(fates.maker, members)
            held = kept | inputs_of(scene, members)
            name = model_name(scene, root)
            what = (
                f"the graphs of {counted(len(members), 'forward')} of {name} are alive, {format_size(scene.at(kept))}"
            )
            if evaluation:
                yield from _of_evaluation(scene, root, held, what)
                continue
            if len(members) < 2 or (_is_retained(scene, members) and not hands_on(scene, members)):
                continue
            # A backward would free a graph bit by bit, sooner than the next forward: what is reserved then is not told.
            less, is_computed = scene.less(np.where(held, scene.block, 0), until_next(scene, members)), True
            if _is_retained(scene, members):
                less, is_computed = _within_own_graph(scene, members, less)
                text = (
                    f"detach what a step hands to the next (state = state.detach()): {what}, and no backward freed them"
                )
            else:
                text = "keep float(loss) or loss.detach() instead of loss, or run them under torch.no_grad()"
                if not fates.has_losses(members.tolist()):  # then it is what they return that was wanted
                    if fates.is_idle[members].all() and len(np.unique(fates.forwards["step"][members])) == 1:
                        continue  # a model that is to run without: another rule names it
                    text = "run what nothing trains on under torch.no_grad(), keep output.detach(), or let go of an "
                    text += "exception that has them"
                    unused = fates.forwards["made_graph"] & ~fates.is_used & (fates.forwards["module"] == root)
                    made = made_by(scene, unused) & (scene.category == Category.ACTIVATION)
                    less = scene.less_without_graph(made | kept, np.where(made | held, scene.block, 0))
                text += f": {what}, and no backward used them"
            yield Advice(saves=scene.saved_over_time(less), text=text, is_computed=is_computed, is_cause=True)


def _within_own_graph(scene: Scene, members: Ints, less: Ints) -> tuple[Ints, bool]:
    """Bytes that are not there at each moment if backwards make nothing in the graphs of earlier steps: nothing beyond
    as many allocations as the first backward had, to which no step had handed anything.

    Args:
        members: forwards whose graphs are handed on.
        less: bytes that are not there without those graphs.

    Returns:
        The bytes, and whether they hold: all of those backwards began as the first did, or it matters little.
    """
    table = scene.result.tape.allocations
    spans, firsts, lasts, made = _backwards_since(scene, members)
    alike = [np.append(made[0][: len(each)] != each[: len(made[0])], True).argmax() for each in made[1:]]
    own = int(min(alike, default=len(made[0])))
    beyond = np.zeros(len(table), bool)
    for first, last in zip(firsts[1:].tolist(), lasts[1:].tolist(), strict=True):
        beyond[first + own : last] = True
    fewer = less + scene.less(np.where(beyond, scene.block, 0))
    for first, last, end in zip(firsts[1:].tolist(), lasts[1:].tolist(), spans["end"][1:].tolist(), strict=True):
        if last - first > own:
            begin = int(table["born"][first + own])
            allocated = scene.result.timeline.allocated[begin : end + 1]
            reached = int(allocated[0]) - int(fewer[begin])
            fewer[begin : end + 1] = np.maximum(fewer[begin : end + 1], allocated - reached)
    if own == len(made[0]) and len(np.unique(spans["step"])) == len(spans):
        return fewer, True
    most, least = scene.saved_over_time(fewer), scene.saved_over_time(less)
    return less, most * (1 - _CLOSE) <= least


def hands_on(scene: Scene, members: Ints) -> bool:
    """Whether backwards since some forwards differ: they go through the graphs of earlier steps. All that are alike go
    through their own alone, and what is left of that was retained.
    """
    _, firsts, lasts, made = _backwards_since(scene, members)
    passing = scene.category != Category.WORKSPACE
    first, *others = (
        each[passing[begin:end]] for each, begin, end in zip(made, firsts.tolist(), lasts.tolist(), strict=True)
    )
    return not all(len(first) == len(each) > 0 and (first == each).all() for each in others)


def _backwards_since(scene: Scene, members: Ints) -> tuple[Table, Ints, Ints, list[Ints]]:
    """The backwards since the first step of some forwards; the first allocation of each and the one after its last, and
    the bytes of all between.
    """
    fates, table = scene.fates, scene.result.tape.allocations
    begin = int(fates.forwards["step"][members].min())
    spans = fates.backwards[fates.backwards["step"] >= begin]
    firsts, lasts = (np.searchsorted(table["born"], spans[name]) for name in ("begin", "end"))
    made = [table["requested"][first:last] for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True)]
    return spans, firsts, lasts, made


def _of_evaluation(scene: Scene, root: int, held: _Mask, what: str) -> Iterator[Advice]:
    fates = scene.fates
    maker = np.maximum(fates.maker, 0)
    graphs = (fates.forwards["phase"] == Phase.EVALUATION) & fates.forwards["has_grad"]
    graphs &= fates.forwards["module"] == root
    made = (fates.maker >= 0) & graphs[maker] & (scene.category == Category.ACTIVATION)
    less = scene.less_without_graph(made, np.where(made | held, scene.block, 0))
    yield Advice(
        saves=scene.saved_over_time(less),
        text=f"evaluate {model_name(scene, root)} under torch.no_grad(): {what}, and no backward followed",
        is_cause=True,
    )


def part_of(scene: Scene, module: int) -> _Mask:
    """A module and those in it; shape ``(modules + 1,)``, the last stands for none."""
    modules = scene.result.tape.modules
    inside = np.zeros(len(modules) + 1, bool)
    inside[module] = module >= 0
    for index in range(module + 1, len(modules)):  # parents come first
        inside[index] |= bool(inside[modules[index].parent])
    return inside


def _no_graph(scene: Scene) -> Iterator[Advice]:
    """Graphs in a recording in which nothing trains. After a failure it may be that a backward would have come: so then
    several forwards must have left theirs, whole.
    """
    fates = scene.fates
    passes = {Phase(int(each)) for each in np.unique(scene.result.tape.passes["phase"])}  # older files have none
    if not {Phase.BACKWARD, Phase.OPTIMIZER}.isdisjoint(passes | scene.phases):
        return
    ended = fates.forwards["made_graph"] & ~fates.forwards["was_left"] & ~fates.is_abandoned
    ended = ended & (fates.forwards["end"] <= scene.moment.event)
    if (scene.moment.failed and int(ended.sum()) < 2) or not scene.keeps_a_graph:
        return
    if len(fates.forwards) and not (fates.forwards["made_graph"] | fates.forwards["was_left"]).any():
        return  # what is kept is no graph: keys and values of earlier tokens, say
    made = scene.category == Category.ACTIVATION
    yield Advice(
        saves=scene.saved_over_time(
            scene.less_without_graph(made & (fates.maker >= 0), np.where(made, scene.block, 0))
        ),
        text="run this under torch.inference_mode() or torch.no_grad(): no backward followed",
        is_cause=True,
    )


def _growth(scene: Scene) -> Iterator[Advice]:
    """What is made in every step, or in every n-th, and kept: of no forward, or of a graph that grows. In evaluation a
    forward is a step.
    """
    turn, current = _turns(scene)
    table, rows = scene.result.tape.allocations, scene.moment.alive & ~scene.left_behind & (scene.fates.user < 0)
    rows &= ~scene.piled_copies
    passing = np.isin(scene.category, (Category.OTHER, Category.INPUT, Category.TEMPORARY, Category.ACTIVATION))
    rows &= passing | ((scene.category == Category.OUTPUT) & (scene.fates.maker < 0))  # a metric's predictions
    rows &= (table["born"] >= 0) & (turn < current)
    rows &= ~inputs_of(scene, np.flatnonzero(keeps_graph(scene, scene.left_behind)))
    if not rows.any():
        return
    found = []
    chosen = np.flatnonzero(rows)
    for group in grouped(chosen, (table["module"].astype(np.int64) * len(Phase) + table["phase"])[chosen]):
        if not is_worth(scene, group):
            continue
        phase, module, kept = int(table["phase"][group[0]]), int(table["module"][group[0]]), np.zeros(len(rows), bool)
        kept[group] = True
        steps = np.unique(turn[kept])
        if len(steps) < 3 or not _goes_on(scene, kept, turn):
            continue  # what only the first steps made is a cache, or a state
        edit = _replaced(scene, kept, turn)
        found.append((scene.saved(edit.smaller, edit.since), edit, phase, module, kept, steps))
    for saves, edit, phase, module, kept, steps in sorted(found, key=lambda each: -each[0])[:1]:
        name = scene.result.tape.modules[module].name if module >= 0 else ""
        turns = "forward" if phase == Phase.EVALUATION else "step"
        where = f"made {place(Phase(phase), name)}" if phase != Phase.OUTSIDE else "made outside of the model's passes"
        yield Advice(
            saves=saves,
            edit=edit,
            text=f"find what keeps {counted(int(kept.sum()), 'tensor')} {where}, of {len(steps):,} {turns}s: "
            f"{format_size(scene.at(kept))}, and more in each {turns}{containers(scene, kept)}",
            is_cause=True,
        )


def _turns(scene: Scene) -> tuple[Ints, Ints]:
    """Of each allocation the step that made it, or in evaluation the forward; and which of these the moment is in."""
    fates, table = scene.fates, scene.result.tape.allocations
    of_forward = (table["phase"] == Phase.EVALUATION) & (fates.maker >= 0)
    last = np.where(of_forward, fates.last_begun(scene.moment.event), scene.moment.step)
    return np.where(of_forward, fates.maker, table["step"].astype(np.int64)), last


def _replaced(scene: Scene, kept: _Mask, turn: Ints) -> Edit:
    """Each of some tensors goes when the next step has made one like it, and the last one stays: a variable's."""
    table = scene.result.tape.allocations
    last = int(np.flatnonzero(kept)[-1])
    alike = scene.moment.alive & (table["phase"] == table["phase"][last]) & (table["module"] == table["module"][last])
    rows = np.flatnonzero(kept | (alike & (table["born"] > table["born"][last])))
    since = np.full(len(table), len(scene.result.tape.events), np.int64)
    for group in grouped(rows, table["requested"][rows]):
        step = turn[group]
        following = np.searchsorted(step, step, side="right")
        has_next = following < len(group)
        since[group[has_next]] = table["born"][group[following[has_next]]] + 1
    return Edit(np.where(kept & (since < len(scene.result.tape.events)), scene.block, 0), since)


# -- what the rules share ----------------------------------------------------------------------------------------------


def made_by(scene: Scene, chosen: _Mask) -> _Mask:
    """The allocations of some forwards."""
    if not len(chosen):
        return np.zeros(len(scene.category), bool)
    result: _Mask = (scene.fates.maker >= 0) & chosen[np.maximum(scene.fates.maker, 0)]
    return result


def is_worth(scene: Scene, group: Ints, part: int = 100) -> bool:
    """Whether some allocations are more than a hundredth of what is there: of the others there may be very many."""
    return int(scene.block[group].sum()) * part > scene.moment.breakdown.allocated


def _goes_on(scene: Scene, kept: _Mask, turn: Ints) -> bool:
    """Whether what was kept in some steps is kept in later ones, too: to the end of the recording, but for a gap. Of
    evaluation to the end of its forwards.
    """
    table = scene.result.tape.allocations
    like = table[np.flatnonzero(kept)[-1]]
    alike = (table["phase"] == like["phase"]) & (table["module"] == like["module"]) & (table["died"] < 0)
    alike &= np.isin(table["category"], np.unique(scene.category[kept])) & (table["born"] >= 0)
    last, gap = int(turn[kept | alike].max()), int(np.diff(np.unique(turn[kept])).max())
    if like["phase"] == Phase.EVALUATION and scene.fates.maker[kept].max() >= 0:
        return len(scene.fates.forwards) - 1 - last <= 2 * gap
    return int(scene.result.tape.events["step"].max()) - last <= 2 * gap


def _activations(scene: Scene) -> _Mask:
    """What forwards made for a backward, and is alive at the moment."""
    made: _Mask = (scene.category == Category.ACTIVATION) & scene.moment.alive & (scene.fates.maker >= 0)
    return made


def keeps_graph(scene: Scene, rows: _Mask) -> _Mask:
    """Of each forward whether its graph is kept: it made one, no backward used it, half of what it left is there. A
    single tensor is an output that is kept. Where the step's backward freed nothing at all, it is the state; and
    several are the part of the graph that made the state.
    """
    fates = scene.fates
    count = len(fates.forwards)
    left = (fates.maker >= 0) & np.isin(scene.category, (Category.ACTIVATION, Category.OUTPUT))
    of_all = np.bincount(fates.maker[left], scene.block[left], count)
    alive = np.bincount(fates.maker[rows], scene.block[rows], count)
    tensors = np.bincount(fates.maker[rows], minlength=count)
    result: _Mask = fates.forwards["made_graph"] & ~fates.is_used & ~fates.is_abandoned
    steps = fates.forwards["step"]
    retained = np.isin(steps, fates.backwards["step"]) & ~np.isin(steps, steps[fates.is_used])
    is_half = 2 * alive >= of_all
    result &= np.where(retained, (tensors > 1) | is_half, (tensors > 1) & is_half)
    return result


def inputs_of(scene: Scene, members: Ints) -> _Mask:
    """Inputs that were made for some forwards, and are there at the moment because their graphs are."""
    result: _Mask = scene.moment.alive & (keeper(scene, members) >= 0)
    return result


def keeper(scene: Scene, members: Ints) -> Ints:
    """Of each input the last of some forwards that was given it: what was made last before it. -1: none, or one that
    the forward at the moment is given, too.
    """
    table = scene.result.tape.allocations
    inputs = (scene.category == Category.INPUT) & (table["born"] >= 0)
    made_for = np.where(inputs, table["forward"].astype(np.int64), -1)  # the forward that begins next has this index
    made = np.unique(np.append(made_for, -1))
    kept_by = np.full(len(scene.fates.forwards) + 2, -1, np.int64)
    kept_by[made[np.searchsorted(made, members, side="right") - 1]] = members
    current = scene.fates.last_begun(scene.moment.event)
    kept_by[made[np.searchsorted(made, current, side="right") - 1] :] = -1  # the last one stands for no input
    result: Ints = kept_by[made_for]
    return result


def until_next(scene: Scene, members: Ints) -> Ints:
    """Of each allocation of some forwards the event at which a variable of it would have been given another value: the
    end of the next forward at its place in a step, or of evaluation; in a loop within a step, of the next one. Inputs
    go with the last forward that is given them.
    """
    fates, tape = scene.fates, scene.result.tape
    of_forward = np.full(len(fates.forwards) + 1, len(tape.events), np.int64)
    following: dict[tuple[int, int], int] = {}  # of each place: the end of the next forward there
    ends = np.full(len(of_forward), len(tape.events), np.int64)
    for index in range(len(fates.forwards) - 1, -1, -1):
        at = int(fates.forwards["module"][index]), int(fates.in_step[index])
        ends[index] = following.get(at, len(tape.events))
        following[at] = int(fates.forwards["end"][index])
    of_forward[members] = ends[members]
    for run in np.split(members, np.flatnonzero(np.diff(members) != 1) + 1):
        for each in grouped(run, fates.forwards["step"][run].astype(np.int64)):
            if len(each) >= _LOOP:
                of_forward[each[:-1]] = fates.forwards["end"][each[1:]]
    of: Ints = of_forward[np.where(scene.category == Category.INPUT, keeper(scene, members), fates.maker)]
    return of


def _is_retained(scene: Scene, members: Ints) -> bool:
    """Whether backwards came in the steps of some forwards, and none freed anything of any forward there."""
    fates = scene.fates
    steps = np.unique(fates.forwards["step"][members])
    used = np.unique(fates.forwards["step"][fates.is_used])
    return bool(np.isin(steps, fates.backwards["step"]).all()) and not np.isin(steps, used).any()


def containers(scene: Scene, rows: _Mask, whole: bool = False) -> str:
    """``" in preds"``: the list or dict that variables were seen to hold most of some allocations in; empty: none was.

    Args:
        scene: that has them.
        rows: which.
        whole: the outermost list or dict.
    """
    name = container(scene, np.flatnonzero(rows))
    return f" in {shown_name(name.partition('[')[0] if whole else name, 40)}" if name else ""


def container(scene: Scene, rows: Ints) -> str:
    """The list or dict that has most of some allocations, with its place in others; empty: none was seen to."""
    tape, inside = scene.result.tape, dict[str, int]()
    for row, name in zip(rows.tolist(), tape.allocations["name"][rows].tolist(), strict=True):
        if name >= 0 and tape.names[name].endswith("]"):
            holder = tape.names[name].rpartition("[")[0]
            inside[holder] = inside.get(holder, 0) + int(scene.block[row])
    return max(inside, key=lambda holder: inside[holder]) if inside else ""


def on_contexts(scene: Scene) -> _Mask:
    """What attributes of a custom function's ``ctx`` were seen to hold, in later steps too."""
    tape = scene.result.tape
    named = [f"{OF_A_CONTEXT}[" in name for name in tape.names]
    result: _Mask = np.array([*named, False])[tape.allocations["name"]] & (scene.category == Category.OUTPUT)
    return result


def _root(scene: Scene, rows: _Mask) -> str:
    return model_name(scene, int(scene.fates.forwards["module"][scene.fates.maker[rows].max()]))


def model_name(scene: Scene, module: int) -> str:
    """What a model is called in a sentence."""
    return shown_name(scene.result.tape.modules[module].name, 60) if module >= 0 else "the model"


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (
    _after_failures,
    _graphs,
    _no_graph,
    _growth,
)
