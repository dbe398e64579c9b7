"""What would lower a peak: one rule a kind of advice. Knows results, not which advice is worth telling."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..gpus import all_gpus
from ..tape.events import Category, Ints, Module, Phase
from .scene import Scene
from .tree import merged_tree, shown_name

_SEGMENTS = 32 << 20
"""Less than this is only the rest of a few segments of 2 and 20 MiB."""


_OLDER = re.compile(r"\b(GTX|TITAN|Titan|RTX 20[5678]0|Quadro|[TPVKM]\d+|GV100)\b")
"""In the names of cards before Ampere, most of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One change to a program."""

    saves: int
    """About how many bytes of peak memory it saves, made alone; of reserved memory: how many at most."""
    text: str
    """What to change, and why it saves, in a sentence."""
    of_reserved: bool = False
    """The bytes are of reserved memory, not of allocated memory."""


def _checkpoint(scene: Scene) -> Iterator[Advice]:
    """Activation checkpointing of repeated blocks. Assumes that a block keeps its output and computes the rest again,
    one block at a time, beside its temporaries. Wrong where a block's output is not what the next one takes.
    """
    tape = scene.result.tape
    if Phase.RECOMPUTE in scene.phases or not scene.trains:
        return
    activation = scene.category == Category.ACTIVATION
    block_of, label = _repeated_blocks(tape.modules, tape.allocations["module"][activation])
    owner = np.append(block_of, -1)[tape.allocations["module"]]
    inside = activation & (owner >= 0)
    weights = np.where(inside, scene.block, 0)
    rows = np.flatnonzero(inside)
    # What stays of each block in each step: one tensor of its output's size.
    key = owner[rows] * (int(tape.allocations["step"].max(initial=0)) + 1) + tape.allocations["step"][rows]
    for group in _grouped(rows, key):
        elements = int(np.prod(tape.modules[int(owner[group[0]])].output_shape, dtype=np.int64))
        for size in (4 * elements, 2 * elements):
            outputs = group[tape.allocations["requested"][group] == size]
            if len(outputs):
                weights[outputs[-1]] = 0
                break
    less = scene.less(weights) - _of_the_running(scene, block_of, owner, weights)
    count = len({int(each) for each in block_of if each >= 0})
    yield Advice(
        saves=scene.saved_over_time(less),
        text=f"checkpoint the {count} blocks {shown_name(label)} (torch.utils.checkpoint)",
    )


def _grouped(rows: Ints, key: Ints) -> list[Ints]:
    """Rows with the same key together, each group in their order; sorted once, as there can be as many keys as rows."""
    order = np.argsort(key, kind="stable")
    begins = np.flatnonzero(np.diff(key[order])) + 1
    return [group for group in np.split(rows[order], begins) if len(group)]


def _of_the_running(scene: Scene, block_of: Ints, owner: Ints, weights: Ints) -> Ints:
    """Bytes that a checkpointed block holds all the same while it runs, or runs again for its backward."""
    tape = scene.result.tape
    events = tape.events
    running = np.append(block_of, -1)[events["module"]]
    running[~np.isin(events["phase"], (Phase.FORWARD, Phase.BACKWARD))] = -1
    # What has no module of its own in a backward (a sum of gradients) comes right after what has one.
    known = np.maximum.accumulate(
        np.where((running >= 0) | (events["phase"] != Phase.BACKWARD), np.arange(len(events)), 0)
    )
    running = running[known] if len(events) else running
    held = np.zeros(len(events) + 1, np.int64)
    inside = np.flatnonzero((owner >= 0) & (weights > 0))
    rows_of = {int(owner[rows[0]]): rows for rows in _grouped(inside, owner[inside])}
    known = np.flatnonzero(running >= 0)
    for at in _grouped(known, running[known]):
        rows = rows_of.get(int(running[at[0]]))
        if rows is None:
            continue
        born, died = tape.allocations["born"][rows], tape.allocations["died"][rows]
        for when, sign in ((born, 1), (np.where(died < 0, len(events), died), -1)):
            order = np.argsort(when)
            sums = np.concatenate([[0], np.cumsum(weights[rows][order])])
            held[at + 1] += sign * sums[np.searchsorted(when[order], at, side="right")]
    return held


def _repeated_blocks(modules: Sequence[Module], keeping: Ints) -> tuple[Ints, str]:
    """For each module the outermost repeated block that it is part of, -1 for none; and what the blocks are called.

    Only of blocks of which some module keeps something: those of a model's copy keep nothing.
    """
    active = np.zeros(len(modules), np.bool_)
    active[keeping[keeping >= 0]] = True
    for index in range(len(modules) - 1, 0, -1):
        if active[index] and modules[index].parent >= 0:
            active[modules[index].parent] = True
    block_of = np.full(len(modules), -1, np.int64)
    labels = []
    pending = merged_tree(modules)
    while pending:
        node = pending.pop()
        if not active[node.members].any():
            continue
        if len(node.members) > 1 and node.children:
            block_of[node.members] = node.members
            labels.append(node.name)
        else:
            pending += node.children
    for index, module in enumerate(modules):  # parents come first
        if block_of[index] < 0 <= module.parent:
            block_of[index] = block_of[module.parent]
    return block_of, sorted(labels)[0] + (", ..." if len(labels) > 1 else "") if labels else ""


def _autocast(scene: Scene) -> Iterator[Advice]:
    """Half of the activations under autocast. Assumes that they are float32 if most of the modules' outputs are;
    norms, softmax and losses stay float32 under autocast, and integers stay what they are.
    """
    tape = scene.result.tape
    activation = scene.category == Category.ACTIVATION
    if not scene.on_gpu or not _mostly_float32(scene, activation):
        return
    copies = scene.at(scene.category == Category.PARAMETER) // 2  # autocast keeps a copy of each weight that it cast
    lacks_bfloat16 = _lacks_bfloat16(scene.result.device_name)
    kind = "float16" if lacks_bfloat16 else "bfloat16"
    yield Advice(
        saves=scene.saved(np.where(activation, tape.allocations["block"] // 2, 0)) - copies,
        text=f'run the forward, float32 now, under torch.autocast("cuda", torch.{kind})'
        + ", with a torch.amp.GradScaler" * (lacks_bfloat16 and scene.trains),
    )


def _lacks_bfloat16(device_name: str) -> bool:
    """Whether a card is older than capability 8.0, by its name. A name that says nothing is taken for a newer one's."""
    for gpu in all_gpus():
        if gpu.product == device_name:
            return gpu.capability < (8, 0)
    return _OLDER.search(device_name) is not None


def _mostly_float32(scene: Scene, activation: npt.NDArray[np.bool_]) -> bool:
    tape = scene.result.tape
    requested = tape.allocations["requested"]
    known = activation & (scene.of_output > 0)
    float32 = int(requested[known & (requested == 4 * scene.of_output)].sum())
    half = int(requested[known & (requested == 2 * scene.of_output)].sum())
    return float32 > 9 * half


def _smaller_batch(scene: Scene) -> Iterator[Advice]:
    """Assumes that activations, inputs, and temporaries of forward and backward are in proportion to the batch, but for
    those of a parameter's size: its gradient's parts, and its copy under autocast. Wrong for a library's scratch.
    """
    if not scene.trains and not scene.piles_up:
        return
    table = scene.result.tape.allocations
    category, requested = scene.category, table["requested"]
    grows = np.isin(category, (Category.ACTIVATION, Category.INPUT)) | (
        (category == Category.TEMPORARY) & np.isin(table["phase"], (Phase.FORWARD, Phase.BACKWARD, Phase.RECOMPUTE))
    )
    parameters = np.unique(requested[category == Category.PARAMETER])
    of_a_parameter = np.isin(requested, np.concatenate([parameters, parameters // 2]))
    is_output = (scene.of_output > 0) & np.isin(requested // np.maximum(scene.of_output, 1), (2, 4))
    grows &= ~of_a_parameter | is_output | (category == Category.INPUT)
    yield Advice(
        saves=scene.saved(np.where(grows, scene.block // 2, 0)),
        text="halve the batch" + " and accumulate gradients over two" * scene.trains,
    )


def _no_graph(scene: Scene) -> Iterator[Advice]:
    """Assumes that a recording with forwards and no backward needs no graph. Wrong where it only stopped too early: so
    after a failure, earlier forwards must have left theirs.
    """
    if Phase.FORWARD not in scene.phases or Phase.BACKWARD in scene.phases:
        return
    if scene.piles_up if scene.moment.failed else scene.keeps_a_graph:
        activation = scene.category == Category.ACTIVATION
        yield Advice(
            saves=scene.saved(np.where(activation, scene.block, 0)),
            text="run this under torch.inference_mode() or torch.no_grad(): no backward followed",
        )


def _optimizer_temporaries(scene: Scene) -> Iterator[Advice]:
    made = scene.result.tape.allocations["phase"] == Phase.OPTIMIZER
    temporary = made & (scene.category == Category.TEMPORARY)
    yield Advice(
        saves=scene.saved(np.where(temporary, scene.block, 0)),
        text="give the optimizer fused=True (or foreach=False): its step() makes temporaries for many "
        "parameters at once",
    )


def _optimizer_state(scene: Scene) -> Iterator[Advice]:
    state = scene.category == Category.OPTIMIZER_STATE
    breakdown = scene.moment.breakdown
    # Two states to a parameter are Adam's; a small state is not worth another optimizer.
    if breakdown.optimizer_state >= breakdown.parameters > 0:
        yield Advice(
            saves=scene.saved(np.where(state, scene.block * 3 // 4, 0)),
            text="use an 8-bit optimizer (torchao, bitsandbytes): its state takes a quarter",
        )


def _stale_gradients(scene: Scene) -> Iterator[Advice]:
    """Gradients that an optimizer's step has used, and that are still there while the next step's forward runs. With
    set_to_none=True, called before the forward, each comes back only when the backward reaches its module. Those that
    no optimizer has used yet are being accumulated, and must stay.
    """
    tape, moment = scene.result.tape, scene.moment
    table, events = tape.allocations, tape.events
    if moment.phase not in (Phase.FORWARD, Phase.BACKWARD):
        return
    used = np.flatnonzero((events["phase"] == Phase.OPTIMIZER) & (events["step"] < moment.step))
    stale = (scene.category == Category.GRADIENT) & (table["step"] < moment.step) & moment.alive
    stale &= table["born"] < used.max(initial=-1)
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
    )


def _chunked_loss(scene: Scene) -> Iterator[Advice]:
    """Large tensors that a loss makes: outside every module; or, where a model computes its own loss, of as many
    elements as its last layer returns. Assumes that all tensors of that size are the loss's own.
    """
    table = scene.result.tape.allocations
    working = np.isin(scene.category, (Category.ACTIVATION, Category.TEMPORARY))
    outside = working & (table["module"] < 0) & np.isin(table["phase"], (Phase.FORWARD, Phase.BACKWARD))
    outside &= scene.moment.alive
    largest = int(table["requested"][outside].max(initial=0))
    last, elements = _last_layer(scene)
    pair = {2 * elements, 4 * elements}  # under autocast the layer works in half precision, and the loss in float32
    choices = [pair if largest in pair else {largest}] if largest else []
    choices += [pair] if elements and _only_around(scene, last, pair, working) else []
    for sizes in choices:
        alike = working & np.isin(table["requested"], sorted(sizes))
        alive = alike & scene.moment.alive
        if scene.at(alike) * 10 < scene.moment.breakdown.allocated:
            continue
        head = "the last layer and " * bool((alive & (table["module"] >= 0)).any())
        yield Advice(
            saves=scene.saved(np.where(alike, scene.block * 7 // 8, 0)),
            text=f"compute {head}the loss in 8 checkpointed chunks, or fused: {int(alive.sum())} tensors as large as "
            "what the loss works on are alive at once",
        )
        return


def _last_layer(scene: Scene) -> tuple[int, int]:
    """The layer whose output is the latest of the moment's step, and that output's elements; 0: there is none."""
    tape = scene.result.tape
    table = tape.allocations
    parents = {module.parent for module in tape.modules}
    leaf = np.array([*(index not in parents for index in range(len(tape.modules))), False])[table["module"]]
    of_output = scene.of_output
    output = leaf & (of_output > 0) & (table["requested"] % np.maximum(of_output, 1) == 0)
    output &= np.isin(table["requested"] // np.maximum(of_output, 1), (2, 4))
    output &= (scene.category == Category.ACTIVATION) & (table["phase"] == Phase.FORWARD) & scene.moment.alive
    rows = np.flatnonzero(output & (table["step"] == scene.moment.step))
    return (int(table["module"][rows[-1]]), int(of_output[rows[-1]])) if len(rows) else (-1, 0)


def _only_around(scene: Scene, last: int, sizes: set[int], working: npt.NDArray[np.bool_]) -> bool:
    """Whether at least three tensors of some sizes are alive, none is larger, and only the last layer and what is
    around it made them: in a network of equal widths every layer's would look alike.
    """
    tape = scene.result.tape
    table = tape.allocations
    alive = working & scene.moment.alive
    alike = alive & np.isin(table["requested"], sorted(sizes))
    around = {-1}
    while last >= 0:
        around.add(last)
        last = tape.modules[last].parent
    largest = int(table["requested"][alive].max(initial=0))
    return int(alike.sum()) >= 3 and set(table["module"][alike].tolist()) <= around and largest <= max(sizes)


def _fragmentation(scene: Scene) -> Iterator[Advice]:
    """Assumes that growing segments would waste nothing, which they do: the figure is a bound, and seldom reached."""
    result, failed = scene.result, scene.moment.failed
    if not scene.on_gpu or "expandable_segments:True" in result.tape.alloc_conf:
        return
    if failed:
        cached = scene.moment.breakdown.cached
        matters = cached >= failed.requested
        text = "so much is cached, in pieces that were too small"
    else:
        cached = result.peak_reserved - result.peak_allocated
        matters = cached * 10 >= (result.capacity or result.peak_reserved)
        text = "so much more is held than was ever allocated at once"
    if matters and cached >= _SEGMENTS:
        yield Advice(
            saves=cached, text=f"set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: {text}", of_reserved=True
        )


def _growth(scene: Scene) -> Iterator[Advice]:
    """Memory that grows by the same amount in each step. The first two are left out: states and caches come there."""
    levels = np.array([step.end_allocated for step in scene.result.steps][2:-1], np.int64)  # the last may be incomplete
    grows = np.diff(levels)
    if len(grows) >= 3 and grows.min() > 0 and grows.max() <= 2 * grows.min():
        yield Advice(
            saves=int(levels[-1] - levels[0]),
            text=f"find what keeps {int(np.median(grows)):,} B more in each step: a list of losses keeps their graphs "
            "(append loss.item() or loss.detach() instead)",
        )


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (
    _checkpoint,
    _autocast,
    _smaller_batch,
    _no_graph,
    _optimizer_temporaries,
    _optimizer_state,
    _stale_gradients,
    _chunked_loss,
    _fragmentation,
    _growth,
)
