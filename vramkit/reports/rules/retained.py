"""Graphs that a backward keeps. Knows earlier forwards, and no other advice."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ...sizes import format_size
from ...tape.events import OF_A_CONTEXT, Category, Ints, Phase
from ...tape.usage import models_of
from ..layout import counted
from ..scene import Scene, grouped
from ..tree import shown_name
from .advised import Advice
from .earlier import hands_on, inputs_of, keeper, made_by, model_name, on_contexts

_Mask = npt.NDArray[np.bool_]
_KEEPS_RESULT = re.compile(r"^(\w*ReLU6?|Sigmoid|Tanh|Softmax|LogSoftmax|ELU|SELU|CELU|Softplus|Dropout[123]?d?)$")
"""Classes of layers whose backward needs what they returned; others need what they were given."""


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
    rows = made_by(scene, retained) & _of_graphs(scene)
    here = np.unique(fates.maker[rows & scene.moment.alive & (fates.maker < current)])
    here = here[forwards["step"][here] != forwards["step"][current]]
    are_kept = len(np.unique(forwards["step"][here])) > 1
    if not len(here) or (are_kept and hands_on(scene, here)) or any(_aimed_at(scene)):
        return
    held = np.isin(fates.maker, here) & rows
    largest = here[np.bincount(fates.maker[held & scene.moment.alive], minlength=len(forwards))[here].argmax()]
    rows |= inputs_of(scene, here)
    maker = np.where(fates.maker < 0, keeper(scene, here), fates.maker)
    yield Advice(
        saves=scene.saved(np.where(rows, scene.block, 0), passed(scene, rows, last[maker])),
        text=f"call backward() without retain_graph=True{', and keep float(loss) instead of loss' * are_kept}: "
        f"{format_size(scene.at(held))} of {f'the graphs of {len(here):,} forwards' if are_kept else 'the graph'} of "
        f"{model_name(scene, int(forwards['module'][largest]))} are there since "
        f"{'earlier steps' if are_kept else 'the step before'}, as no backward freed them "
        "(create_graph=True keeps it, too)",
        is_cause=True,
    )


def _on_contexts(scene: Scene) -> Iterator[Advice]:
    """What attributes of a custom function's ``ctx`` hold beyond their step: its output, so that both are a cycle, or
    what such a cycle reaches. Assumes that what was saved instead is gone when a backward has passed its module.
    """
    fates, rows = scene.fates, on_contexts(scene) & (scene.fates.maker >= 0)
    earlier = rows & scene.moment.alive & (fates.maker < fates.last_begun(scene.moment.event))
    if not earlier.any():
        return
    tape, backwards = scene.result.tape, fates.backwards
    ends = np.append(fates.forwards["end"], 0)[fates.maker].astype(np.int64)
    backward = np.where(rows, np.searchsorted(backwards["begin"], ends), 0)
    backward = np.minimum(backward, len(backwards))
    holder, _, key = tape.names[int(tape.allocations["name"][np.flatnonzero(earlier)[-1]])].partition(OF_A_CONTEXT)
    function, key = shown_name(holder, 60), shown_name(key.split("]")[0].strip("['"), 40)
    yield Advice(
        saves=scene.saved(np.where(rows, scene.block, 0), passed(scene, rows, backward)),
        text=f"give the tensors of {function} to ctx.save_for_backward(), not to attributes such as "
        f"ctx.{key}: {counted(int(earlier.sum()), 'tensor')} of earlier steps, "
        f"{format_size(scene.at(earlier))}, are there, as an output on its own ctx is a cycle, which only Python's "
        "garbage collector ends",
        is_cause=True,
    )


def _of_graphs(scene: Scene) -> _Mask:
    """Activations, and outputs that go when activations of their step do: a list of them went with its loss."""
    table, fates = scene.result.tape.allocations, scene.fates
    activations = (scene.category == Category.ACTIVATION) & (fates.maker >= 0)
    steps, step = np.unique(table["step"], return_inverse=True)
    count = len(steps)
    died = np.where(table["died"] < 0, len(scene.result.tape.events), table["died"])
    first, last = np.full(count, np.iinfo(np.int64).max), np.full(count, -1, np.int64)
    unused = activations & (fates.user < 0)
    np.minimum.at(first, step[unused], died[unused])
    np.maximum.at(last, step[unused], died[unused])
    goes = (died >= first[step]) & (died <= last[step]) & (fates.maker >= 0) & (table["module"] >= 0)
    result: _Mask = activations | ((scene.category == Category.OUTPUT) & goes)
    return result


def _aimed_at(scene: Scene) -> Iterator[Advice]:
    """Graphs of a step that each later backward goes through again, as those of features that others are compared with:
    more often through their layers than these ran in its step. What such backwards make for nothing, and what they
    would free if they were told to keep no graph, the tape does not say.
    """
    fates, table = scene.fates, scene.result.tape.allocations
    running = int(np.searchsorted(fates.backwards["begin"], scene.moment.event, side="right")) - 1
    if running < 0 or scene.moment.failed:
        return
    step = int(fates.backwards["step"][running])
    made = np.isin(scene.category, (Category.ACTIVATION, Category.OUTPUT)) & scene.moment.alive & (fates.user < 0)
    waits = fates.forwards["made_graph"] & ~fates.is_used & (fates.forwards["step"] < step)
    kept = made & made_by(scene, waits)
    died = np.where(table["died"] < 0, len(scene.result.tape.events), table["died"])
    kept &= died >= fates.backwards["end"][running]
    again = [
        root for root in np.unique(fates.forwards["module"][fates.maker[kept]]).tolist() if _again(scene, root, running)
    ]
    here = np.unique(fates.maker[kept & np.isin(np.append(fates.forwards["module"], -1)[fates.maker], again)])
    if not len(here) or len(np.unique(fates.forwards["step"][here])) > 1:
        return
    yield Advice(
        saves=scene.at(kept & np.isin(fates.maker, here)),
        text=f"run what {model_name(scene, int(fates.forwards['module'][here[-1]]))} computes once, to compare with, "
        "under torch.no_grad(), or detach it, and call backward() without retain_graph=True: the graphs of "
        f"{counted(len(here), 'forward')} of step {int(fates.forwards['step'][here[0]]) + 1} are there in later steps, "
        "whose backwards go through them again",
        is_computed=False,
        is_cause=True,
    )


def _again(scene: Scene, root: int, backward: int) -> bool:
    """Whether a backward comes to most layers of a model more often than they ran since the backward before."""
    tape, fates = scene.result.tape, scene.fates
    begin, end = (int(fates.backwards[name][backward]) for name in ("begin", "end"))
    since = int(fates.backwards["end"][backward - 1]) if backward else 0
    models, events = models_of(tape.modules), tape.events["module"]
    counts = []
    for first, last in ((since, begin), (begin, end)):
        passing = events[first:last]
        passing = passing[passing >= 0]
        passing = passing[np.array(models, np.int64)[passing] == root] if len(passing) else passing
        comes = np.append(True, np.diff(passing) != 0)[: len(passing)]
        counts.append(np.bincount(passing[comes], minlength=len(tape.modules)))
    ran, reached = counts
    layers = (ran > 0) & (reached > 0)
    return bool(layers.any()) and 2 * int((reached > ran)[layers].sum()) > int(layers.sum())


def _kept_within(scene: Scene) -> Iterator[Advice]:
    """Graphs that are there in their own step, after a backward of their own that freed nothing, and that no later one
    uses: of gradients that are not differentiated, or of what they are added to. Assumes that such a backward then
    frees each as it leaves its module, and keeps nothing of what it makes.
    """
    fates, table = scene.fates, scene.result.tape.allocations
    forwards, backwards = fates.forwards, fates.backwards
    if not len(backwards) or not len(forwards):
        return
    own = np.searchsorted(backwards["begin"], forwards["end"])  # the backward that comes next
    has_own = own < len(backwards)
    own = np.minimum(own, len(backwards) - 1)
    has_own &= backwards["begin"][own] < np.append(forwards["begin"][1:], len(scene.result.tape.events))
    kept = has_own & forwards["made_graph"] & ~fates.is_used
    kept &= backwards["step"][own] == forwards["step"]
    within = np.searchsorted(backwards["begin"], table["born"], side="right") - 1
    within = np.where((within >= 0) & (table["born"] < np.append(backwards["end"], 0)[within]), within, -1)
    of_backward = (scene.category == Category.ACTIVATION) & (table["phase"] == Phase.BACKWARD) & (within >= 0)
    died_in = np.searchsorted(backwards["begin"], table["died"], side="right") - 1
    used = (table["died"] >= 0) & (died_in >= 0) & (table["died"] < np.append(backwards["end"], 0)[died_in])
    doubled = np.zeros(len(backwards) + 1, bool)  # a later backward went through what one had made
    doubled[within[of_backward & used]] = True
    kept &= ~doubled[own]
    second = np.zeros(len(backwards), bool)
    second[own[kept]] = True
    of_backward &= np.append(second, False)[within]
    made = made_by(scene, kept) & (scene.category == Category.ACTIVATION) & (fates.user < 0)
    if not of_backward.any() or not made.any():
        return  # it made no graph of its own: retain_graph=True, of which another rule knows
    rows = made | of_backward
    backward = np.where(of_backward, within, np.append(own, 0)[fates.maker])
    here = np.unique(fates.maker[made & scene.moment.alive])
    yield Advice(
        saves=scene.saved(np.where(rows, scene.block, 0), passed(scene, rows, backward)),
        text="compute gradients without create_graph=True, or detach what is made of them, if no gradient of theirs is "
        f"needed: {format_size(scene.at(rows))} of the graphs of {counted(len(here), 'forward')} and of their "
        "backwards are there, and no later backward used them",
        is_cause=True,
    )


def passed(scene: Scene, rows: _Mask, backward: Ints) -> Ints:
    """Of some activations the event at which a backward frees them: it has come to the module that returned them, or
    has left the one that made them, where that needs them itself. Of inputs, which no module has, about then, too.
    """
    tape, backwards = scene.result.tape, scene.fates.backwards
    count = len(tape.modules) + 1
    events = np.flatnonzero((tape.events["phase"] == Phase.BACKWARD) & (tape.events["module"] >= 0))
    inside = np.searchsorted(backwards["begin"], events, side="right") - 1
    place = inside * count + tape.events["module"][events]
    keys, first = np.unique(place, return_index=True)
    _, last = np.unique(place[::-1], return_index=True)
    since = np.append(backwards["end"], len(tape.events))[backward].astype(np.int64)
    if not len(keys):
        return since
    # What the loss made goes one after the other, the last first, before the backward comes to a module.
    opens = np.append(backwards["begin"], 0).astype(np.int64)
    comes = np.append(events, len(tape.events))[np.searchsorted(events, opens)]
    for group in grouped(losses := np.flatnonzero(rows & (tape.allocations["module"] < 0)), backward[losses]):
        of = int(backward[group[0]])
        if comes[of] < since[group[0]]:
            part = (np.arange(len(group), 0, -1) - 0.5) / len(group)
            since[group] = opens[of] + np.ceil(part * (comes[of] - opens[of])).astype(np.int64)
    keeps = np.array([*(_KEEPS_RESULT.match(module.kind) is not None for module in tape.modules), False])
    width = tape.allocations["requested"] / np.maximum(scene.of_output, 1)
    of_next = (scene.of_output > 0) & np.isin(width, (2, 4)) & ~keeps[tape.allocations["module"]]
    wanted = backward * count + tape.allocations["module"]
    found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    known = rows & (keys[found] == wanted)
    at = np.where(of_next, events[first[found]], events[::-1][last[found]] + 1)
    since[known] = at[known]
    return since


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (_on_contexts, _retained, _aimed_at, _kept_within)
