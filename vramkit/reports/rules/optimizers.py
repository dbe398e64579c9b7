"""What an optimizer keeps and makes, and when gradients are cleared. Knows no other advice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ...sizes import format_size
from ...tape.events import Category, Ints, Phase
from ...tape.owners import owners
from ..edits import Edit
from ..scene import Scene
from ..tree import shown_name
from .advised import Advice

_QUANTIZED = 4096  # numbers: smaller states stay as they are
_MANY = 4
"""So many temporaries of parameters' sizes, at least, are there at once if a step is computed for many of them."""
_IN_8_BITS = {
    frozenset({"exp_avg", "exp_avg_sq"}): "an 8-bit Adam (torchao, bitsandbytes)",
    frozenset({"exp_avg"}): "Lion8bit of bitsandbytes",
    frozenset({"momentum_buffer"}): "SGD8bit of bitsandbytes",
    frozenset({"square_avg"}): "RMSprop8bit of bitsandbytes",
    frozenset({"sum"}): "Adagrad8bit of bitsandbytes",
}
"""Who keeps, in 8 bits, what has these names. Of RMSprop's state with momentum, Adadelta's, Adamax's, that of Adam with
``amsgrad`` and others there is no such form.
"""
_FUSED = (
    frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"}),
    frozenset({"momentum_buffer"}),
    frozenset({"sum", "step"}),
)
"""What states are called of which one kernel does a step: Adam's, SGD's, Adagrad's. RAdam's and NAdam's are called as
Adam's, and have none."""
_OF_ADAFACTOR = frozenset({"row_var", "col_var", "variance"})


def _temporaries(scene: Scene) -> npt.NDArray[np.bool_]:
    made = scene.result.tape.allocations["phase"] == Phase.OPTIMIZER
    found: npt.NDArray[np.bool_] = made & (scene.category == Category.TEMPORARY)
    return found


def _optimizer_temporaries(scene: Scene) -> Iterator[Advice]:
    """Temporaries as large as parameters. Others are of optimizers that do something else, as LBFGS with one vector of
    all parameters, and have no such options. One kernel for all makes none; a step for each makes those of the largest.
    """
    requested = scene.result.tape.allocations["requested"].astype(np.int64)
    parameters = requested[scene.category == Category.PARAMETER]
    sizes = np.unique(parameters)
    rows = _temporaries(scene) & np.isin(requested, np.concatenate([sizes, 2 * sizes, sizes // 2]))
    if int((rows & scene.moment.alive).sum()) < min(_MANY, len(parameters)):
        return
    kinds = _kinds_of_state(scene)
    if not kinds.isdisjoint(_OF_ADAFACTOR):
        return  # it does one parameter at a time unless it is told otherwise
    has_fused = any(kinds <= each for each in _FUSED)
    weights = np.where(rows, scene.block, 0)
    many = "its step() makes temporaries for many parameters at once"
    yield Advice(
        saves=scene.saved(weights),
        edit=Edit(weights) if has_fused else None,
        is_computed=has_fused,
        text=f"give the optimizer fused=True, if it has that: {many}"
        if has_fused
        else f"give the optimizer foreach=False: {many}, and would make those of one; it takes longer",
    )


def _kinds_of_state(scene: Scene) -> set[str]:
    """What optimizer states are called."""
    table, names = scene.result.tape.allocations, scene.result.tape.names
    rows = (scene.category == Category.OPTIMIZER_STATE) & (table["name"] >= 0)
    return {names[name].partition(" of ")[0] for name in np.unique(table["name"][rows]).tolist()}


def _optimizer_state(scene: Scene) -> Iterator[Advice]:
    """Assumes a byte for each number, and four for 256 of them, as AdamW8bit of torchao and all of bitsandbytes have
    it; they step one parameter at a time.
    """
    breakdown = scene.moment.breakdown
    # A small state is not worth another optimizer.
    if not breakdown.optimizer_state >= breakdown.parameters > 0:
        return
    numbers, kinds = _numbers_of_state(scene)
    optimizer = _IN_8_BITS.get(kinds)
    if optimizer is None or (kinds == {"momentum_buffer"} and _computes_in_half(scene)):
        return
    state = scene.category == Category.OPTIMIZER_STATE
    quantized = numbers + numbers // 64
    fewer = np.where(numbers >= _QUANTIZED, np.maximum(scene.block - quantized, 0), 0)
    weights = fewer + np.where(_temporaries(scene), scene.block, 0)
    before = int(scene.block[state & (fewer > 0)].sum())
    part = int(quantized[state & (fewer > 0)].sum()) / before if before else 1.0
    if fewer.any():
        yield Advice(
            saves=scene.saved(weights),
            text=f"use {optimizer}: its state takes " + ("a quarter" if part < 0.4 else "half"),
        )


def _computes_in_half(scene: Scene) -> bool:
    """Whether steps make what is half as large as a parameter, as Muon does, whose state is named as SGD's."""
    requested = scene.result.tape.allocations["requested"]
    parameters = np.unique(requested[scene.category == Category.PARAMETER])
    halves = np.setdiff1d(parameters // 2, parameters)
    return bool(np.isin(requested[_temporaries(scene)], halves[halves > _QUANTIZED]).any())


def _numbers_of_state(scene: Scene) -> tuple[Ints, frozenset[str]]:
    """How many numbers each optimizer state is that has as many as its parameter, 0 for everything else; and what such
    states are called.

    A parameter's numbers are as long as its module says, and float32 where nothing says it.
    """
    table, names = scene.result.tape.allocations, scene.result.tape.names
    owner, modules = owners(scene.result.tape), scene.result.tape.modules
    numel: dict[str, int] = {}
    for row in np.flatnonzero((scene.category == Category.PARAMETER) & (table["name"] >= 0)).tolist():
        module = modules[owner[row]] if owner[row] >= 0 else None
        numel[names[table["name"][row]]] = int(table["requested"][row]) // ((module and module.item_size) or 4)
    found, kinds = np.zeros(len(table), np.int64), set()
    for row in np.flatnonzero(scene.category == Category.OPTIMIZER_STATE).tolist():
        requested = int(table["requested"][row])
        name = names[table["name"][row]] if table["name"][row] >= 0 else ""
        kind, _, parameter = name.partition(" of ")
        count = numel.get(parameter, requested // 4)
        if requested in (2 * count, 4 * count):
            found[row] = count
            kinds |= {kind} if count >= _QUANTIZED else set()
    return found, frozenset(kinds)


def _stale_gradients(scene: Scene) -> Iterator[Advice]:
    """Gradients that an optimizer's step has used, as its marks tell, and that are still there while the next forward
    runs. With set_to_none=True, called before the forward, each comes back only when the backward reaches its module.
    Those that no optimizer has used yet are being accumulated, and must stay; what no optimizer has, none clears.
    """
    tape, moment = scene.result.tape, scene.moment
    table, events = tape.allocations, tape.events
    if moment.phase not in (Phase.FORWARD, Phase.BACKWARD):
        return
    steps = tape.passes[tape.passes["phase"] == Phase.OPTIMIZER]
    used = steps["begin"][steps["step"] < moment.step]
    stale = (scene.category == Category.GRADIENT) & (table["step"] < moment.step) & moment.alive
    stale &= (table["born"] < used.max(initial=-1)) & ~scene.never_cleared
    if not stale.any():
        return
    during = np.flatnonzero((events["step"] == moment.step) & np.isin(events["phase"], (Phase.FORWARD, Phase.BACKWARD)))
    less = np.zeros(len(events) + 1, np.int64)
    backward = during[events["phase"][during] == Phase.BACKWARD]
    reached, first = np.unique(events["module"][backward], return_index=True)
    comes_back = dict(zip(reached.tolist(), backward[first].tolist(), strict=True))
    for row in np.flatnonzero(stale):
        until = comes_back.get(int(table["module"][row]), int(during[-1]) + 1)
        if table["died"][row] >= 0:
            until = min(until, int(table["died"][row]))
        if until > during[0]:
            less[int(during[0]) + 1] += scene.block[row]
            if until < len(events):
                less[until + 1] -= scene.block[row]
    less = np.cumsum(less)
    if moment.failed:
        saves = int(less[moment.event + 1])
    else:
        allocated = scene.result.timeline.allocated[during[0] + 1 : during[-1] + 2]
        saves = int(allocated.max() - (allocated - less[during[0] + 1 : during[-1] + 2]).max())
    yield Advice(
        saves=saves,
        text="call optimizer.zero_grad() before the forward, with its default set_to_none=True: gradients of earlier "
        "steps are alive during it",
        is_cause=True,
    )


def _gradients_in_evaluation(scene: Scene) -> Iterator[Advice]:
    """Gradients that an optimizer's step has used, and that are still there while models are evaluated. Those that no
    optimizer has used yet are being accumulated, and must stay.
    """
    phase, passes = scene.result.tape.events["phase"], scene.result.tape.passes
    passes = passes[passes["phase"] != Phase.EVALUATION]
    if not scene.evaluates or not len(passes):
        return
    last = np.searchsorted(passes["begin"], np.arange(len(phase)), side="right") - 1
    used = (phase == Phase.EVALUATION) & (last >= 0) & (passes["phase"][last] == Phase.OPTIMIZER)
    less = scene.less(np.where(scene.category == Category.GRADIENT, scene.block, 0))
    less[np.append(True, ~used)] = 0
    yield Advice(
        saves=scene.saved_over_time(less),
        text="call optimizer.zero_grad() before evaluation: gradients of the step before are alive during it",
        is_cause=True,
    )


def _older_state(scene: Scene) -> Iterator[Advice]:
    """State of an optimizer that another one has replaced: for the same parameters, of the same kinds, made later."""
    tape, moment = scene.result.tape, scene.moment
    table = tape.allocations
    steps = tape.passes[tape.passes["phase"] == Phase.OPTIMIZER]
    state = (scene.category == Category.OPTIMIZER_STATE) & (table["name"] >= 0) & (table["born"] >= 0)
    sizes = {int(table["name"][row]): int(table["requested"][row]) for row in _of_parameters(scene)}
    names = {tape.names[name]: size for name, size in sizes.items()}
    since = np.full(len(table), len(tape.events), np.int64)
    last: dict[int, int] = {}
    for row in np.flatnonzero(state & moment.alive)[::-1].tolist():
        name = int(table["name"][row])
        if names.get(tape.names[name].partition(" of ")[2]) != table["requested"][row]:
            continue
        later = last.get(name, row)
        last[name] = row
        pass_of = int(np.searchsorted(steps["begin"], table["born"][later], side="right")) - 1
        if later != row and pass_of >= 0 and table["born"][row] < steps["begin"][pass_of]:
            since[row] = steps["begin"][pass_of]
    older = since < len(tape.events)
    if not older.any():
        return
    edit = Edit(np.where(older, scene.block, 0), since)
    yield Advice(
        saves=scene.saved(edit.smaller, edit.since),
        edit=edit,
        text="delete an optimizer, and what refers to it, before another is made of the same parameters, or go on with "
        f"the first: {format_size(scene.at(older))} of state are there for parameters that have newer state",
        is_cause=True,
    )


def _of_parameters(scene: Scene) -> list[int]:
    """The rows of parameters that are there and have names."""
    named = scene.moment.alive & (scene.result.tape.allocations["name"] >= 0)
    rows: list[int] = np.flatnonzero(named & (scene.category == Category.PARAMETER)).tolist()
    return rows


def _state_to_come(scene: Scene) -> Iterator[Advice]:
    """What the first step of an optimizer would still have made when memory ran out in it. Assumes that every parameter
    with a gradient gets the kinds of state that the first of them have, each as large as it.
    """
    tape, moment = scene.result.tape, scene.moment
    steps = tape.passes[tape.passes["phase"] == Phase.OPTIMIZER]
    if not moment.failed or moment.phase is not Phase.OPTIMIZER or (steps["end"] <= moment.event).any():
        return
    table, names = tape.allocations, tape.names
    alive = moment.alive & (table["name"] >= 0)
    sizes = {}
    for row in np.flatnonzero(alive & (scene.category == Category.GRADIENT)).tolist():
        sizes[names[table["name"][row]]] = int(table["requested"][row])
    made = {}
    for row in np.flatnonzero(alive & (scene.category == Category.OPTIMIZER_STATE)).tolist():
        kind, _, parameter = names[table["name"][row]].partition(" of ")
        if sizes.get(parameter) == table["requested"][row]:
            made[kind, parameter] = int(table["requested"][row])
    kinds = {kind for kind, _ in made}
    to_come = len(kinds) * sum(sizes.values()) - sum(made.values())
    if to_come > 0:
        yield Advice(
            saves=to_come,
            text=f"count with the optimizer's state, which its first step makes: {len(made):,} of "
            f"{len(kinds) * len(sizes):,} tensors were there, {format_size(to_come)} are still to come, and its "
            "temporaries beside them (fused=True makes none)",
            is_computed=False,
            is_cause=True,
        )


def _sparse(scene: Scene) -> Iterator[Advice]:
    """Gradients of embeddings of which a step uses few rows. Assumes that each number of a batch is another row. Wrong
    for a weight that something else uses too, of which a backward then makes more than one gradient.
    """
    tape = scene.result.tape
    table, owner = tape.allocations, owners(tape)
    widths = {module.output_shape[-1] for module in tape.modules if module.output_shape}
    for index, module in enumerate(tape.modules):
        if "Embedding" not in module.kind or len(module.output_shape) < 2:
            continue
        own = np.flatnonzero((owner == index) & (scene.category == Category.PARAMETER))
        if len(own) != 1:
            continue
        size, width, item = int(table["requested"][own[0]]), module.output_shape[-1], module.item_size or 4
        used, rows = int(np.prod(module.output_shape[:-1], dtype=np.int64)), size // (item * width)
        sparse = used * (8 + item * width)
        if size < 4 * sparse or rows in widths or _gradients_in_a_backward(scene, size) > _of_size(scene, size):
            continue
        alike = (scene.category == Category.TEMPORARY) & (table["requested"] == size)
        of_it = (table["phase"] == Phase.OPTIMIZER) | (table["module"] == index)
        weights = np.where(alike & of_it, scene.block, 0)
        gradient = (scene.category == Category.GRADIENT) & (owner == index) & (table["requested"] == size)
        weights += np.where(gradient, scene.block - sparse, 0)
        yield Advice(
            saves=scene.saved(weights),
            text=f"give {shown_name(module.name, 60)} sparse=True, and its weight an optimizer of its own "
            f"(torch.optim.SparseAdam): a step uses at most {used:,} of its {rows:,} rows",
        )


def _of_size(scene: Scene, size: int) -> int:
    """How many parameters are as large as that."""
    alike = (scene.category == Category.PARAMETER) & (scene.result.tape.allocations["requested"] == size)
    return int(alike.sum())


def _gradients_in_a_backward(scene: Scene, size: int) -> int:
    """How many tensors as large as that a backward made, at most: their gradients, and what was added to them."""
    table, passes = scene.result.tape.allocations, scene.result.tape.passes
    backwards = passes[passes["phase"] == Phase.BACKWARD]
    born = np.sort(table["born"][(table["requested"] == size) & (table["phase"] == Phase.BACKWARD)])
    made = np.searchsorted(born, backwards["end"]) - np.searchsorted(born, backwards["begin"])
    return int(made.max(initial=0))


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (
    _optimizer_temporaries,
    _optimizer_state,
    _stale_gradients,
    _gradients_in_evaluation,
    _older_state,
    _state_to_come,
    _sparse,
)
