"""What would lower a peak: one rule a kind of advice. Knows results, not which advice is worth telling."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..gpus import all_gpus
from ..tape.events import Category, Ints, Phase
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
    is_computed: bool = True
    """Whether the bytes are what the change would save; else only what is at stake, and nothing to tell."""


def _checkpoint(scene: Scene) -> Iterator[Advice]:
    """Activation checkpointing of repeated blocks. Assumes that a block keeps its output and computes the rest again,
    one block at a time, beside its temporaries. Wrong where a block's output is not what the next one takes.
    """
    tape = scene.result.tape
    if Phase.RECOMPUTE in scene.phases or not scene.trains or scene.evaluates:
        return
    block_of, name_of = _repeated_blocks(scene)
    owner = np.append(block_of, -1)[tape.allocations["module"]]
    inside = (scene.category == Category.ACTIVATION) & (owner >= 0)
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
    names = sorted({name_of[block] for block in np.unique(owner[rows]).tolist()})
    blocks = [block for block, name in name_of.items() if name in names]  # not those of a copy, which keep nothing
    if names:
        label = shown_name(names[0] + ", ..." * (len(names) > 1))
        yield Advice(
            saves=scene.saved_over_time(less),
            text=f"checkpoint the {len(blocks)} blocks {label} (torch.utils.checkpoint)",
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


def _repeated_blocks(scene: Scene) -> tuple[Ints, dict[int, str]]:
    """For each module the outermost repeated block that it is part of, -1 for none; and what each block is called."""
    modules = scene.result.tape.modules
    block_of = np.full(len(modules), -1, np.int64)
    name_of: dict[int, str] = {}
    pending = merged_tree(modules)
    while pending:
        node = pending.pop()
        if len(node.members) > 1 and node.children:
            block_of[node.members] = node.members
            name_of.update(dict.fromkeys(node.members, node.name))
        else:
            pending += node.children
    for index, module in enumerate(modules):  # parents come first
        if block_of[index] < 0 <= module.parent:
            block_of[index] = block_of[module.parent]
    return block_of, name_of


def _autocast(scene: Scene) -> Iterator[Advice]:
    """Half of the activations under autocast. Assumes that they are float32 if most of the modules' outputs are;
    norms, softmax and losses stay float32 under autocast, and integers stay what they are.
    """
    tape = scene.result.tape
    activation = scene.category == Category.ACTIVATION
    if not scene.on_gpu or not _mostly_float32(scene, activation) or (scene.evaluates and scene.trains):
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
    if scene.evaluates or not (scene.trains or scene.piles_up):
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
    """What a loss makes of the last layer's output: the output itself, and tensors of as many rows, or of a few less
    where labels are shifted. Assumes that the loss is a sum over rows. Wrong where it compares rows with each other.
    """
    last = _last_layer(scene)
    if last < 0:
        return
    tape = scene.result.tape
    shape = tape.modules[last].output_shape
    requested, elements = tape.allocations["requested"], int(np.prod(shape, dtype=np.int64))
    of_loss = _after_layer(scene, last) & np.isin(scene.category, (Category.ACTIVATION, Category.TEMPORARY))
    alike = np.zeros(len(requested), bool)
    for size in (2, 4):  # under autocast the layer works in half precision, and the loss in float32
        row = size * shape[-1]
        alike |= (requested % row == 0) & (requested <= size * elements) & (requested * 10 >= size * elements * 9)
    of_loss &= alike
    if scene.at(of_loss) * 10 >= scene.moment.breakdown.allocated:
        yield Advice(
            saves=scene.saved(np.where(of_loss, scene.block * 7 // 8, 0)),
            text="compute the last layer and the loss in 8 checkpointed chunks, or fused: "
            f"{int((of_loss & scene.moment.alive).sum())} tensors as large as what the loss works on are alive at once",
        )


def _last_layer(scene: Scene) -> int:
    """The module without others in it whose output is the latest of the moment's step; -1: none is known."""
    tape = scene.result.tape
    table = tape.allocations
    parents = {module.parent for module in tape.modules}
    leaf = np.array([*(index not in parents for index in range(len(tape.modules))), False])[table["module"]]
    ratio, rest = np.divmod(table["requested"], np.maximum(scene.of_output, 1))
    output = leaf & (scene.of_output > 0) & (rest == 0) & np.isin(ratio, (2, 4))
    output &= (table["phase"] == Phase.FORWARD) & (table["step"] == scene.moment.step)
    rows = np.flatnonzero(output)
    return int(table["module"][rows[-1]]) if len(rows) else -1


def _after_layer(scene: Scene, layer: int) -> npt.NDArray[np.bool_]:
    """Allocations from each forward of a layer, its output included, to its backward, but for those of other layers."""
    tape = scene.result.tape
    table, events = tape.allocations, tape.events
    new = np.flatnonzero(table["born"] >= 0)
    born = table["born"][new]
    of_layer = (table["module"][new] == layer) & (table["phase"][new] == Phase.FORWARD)
    at = np.zeros((2, len(events)), np.int64)
    at[0, born[of_layer]] = born[of_layer] + 1
    back = np.flatnonzero((events["module"] == layer) & (events["phase"] == Phase.BACKWARD))
    at[1, back] = back + 1
    forward, backward = np.maximum.accumulate(at, axis=1)
    has_parameters = np.array([*(module.parameters > 0 for module in tape.modules), False])
    has_parameters[layer] = False
    result = np.zeros(len(table), bool)
    result[new] = (forward > backward)[born] & ~has_parameters[table["module"][new]]
    return result


def _fragmentation(scene: Scene) -> Iterator[Advice]:
    """Assumes that growing segments would waste nothing, which they do: the figure is a bound, and seldom reached."""
    result, failed = scene.result, scene.moment.failed
    if not scene.on_gpu or "expandable_segments:True" in result.tape.alloc_conf:
        return
    if result.is_window and not failed:  # what was allocated at once before it, nobody knows
        return
    if failed:
        cached = scene.moment.breakdown.cached
        matters = cached >= failed.requested
        text = "so much is cached, in pieces that were too small"
    else:
        pools = int(result.timeline.graph_pools[int(result.timeline.reserved.argmax())])
        cached = max(0, result.peak_reserved - result.peak_allocated - pools)
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
