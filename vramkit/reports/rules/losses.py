"""The loss in chunks. Knows no other advice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ...tape.events import Category, Ints, Phase
from ..layout import counted
from ..scene import SIZES, Scene, grouped
from ..tree import shown_name
from .advised import Advice

_CHUNKS = 8
_MANY_ROWS = 256
"""Of fewer rows all pairs are little; and as many numbers have other things, too."""
_NO_PAIRS = 1 << 24
"""All pairs of so many rows are on no card."""
_WIDER = 4
"""So many times wider than its input a last layer has to be: each chunk makes a gradient of the input."""


def _chunked_loss(scene: Scene) -> Iterator[Advice]:
    """What a loss makes of the last layer's output: the output itself, and tensors of as many rows, or of a few less
    where labels are shifted, that were born after it in its forward, or in the backward before it is reached again.
    Assumes that the loss is a sum over rows. Wrong where it compares rows with each other.
    """
    chain = _chain(scene)
    alive = int((chain & scene.moment.alive).sum())
    if int(chain.sum()) > 1 and alive and scene.trains:
        yield Advice(
            saves=scene.saved(np.where(chain, scene.block * (_CHUNKS - 1) // _CHUNKS, 0)),
            text=f"compute the last layer and the loss in {_CHUNKS} checkpointed chunks, or fused: "
            f"{alive} {'tensors' if alive > 1 else 'tensor'} as large as what the loss works on "
            f"{'are' if alive > 1 else 'is'} alive at once",
        )


def _chain(scene: Scene) -> npt.NDArray[np.bool_]:
    """The last layer's output and what the loss makes of it, in every training step like the moment's; else nothing."""
    fates, tape = scene.fates, scene.result.tape
    table, requested = tape.allocations, tape.allocations["requested"]
    nothing = np.zeros(len(table), bool)
    current = fates.last_begun(scene.moment.event)
    if current < 0 or fates.forwards["phase"][current] != Phase.FORWARD:
        return nothing
    is_layer = _layers(scene)
    root = fates.forwards["module"][current]
    made = (fates.maker >= 0) & np.isin(scene.category, (Category.ACTIVATION, Category.TEMPORARY))
    made &= (fates.forwards["module"] == root)[fates.maker] & (table["phase"] == Phase.FORWARD)
    chosen = np.flatnonzero(made)
    result = nothing
    for rows in grouped(chosen, fates.maker[chosen]):
        in_layers = rows[is_layer[table["module"][rows]]]
        layer = int(table["module"][in_layers[-1]]) if len(in_layers) else -1
        output = _output_of(scene, in_layers[table["module"][in_layers] == layer])
        if output < 0:
            continue
        before, within = _in_backward(scene, int(fates.maker[rows[0]]), layer, is_layer)
        after = np.concatenate([rows[rows >= output], before])
        base = int(requested[after].max())
        if _is_in_chunks(scene, current, layer):
            continue
        others = in_layers[table["module"][in_layers] != layer]
        before_it = tape.modules[int(table["module"][others[-1]])].output_shape if len(others) else ()
        if _is_narrow(scene, layer, before_it, int(requested[output]), base):
            continue
        after = np.concatenate([after, within])
        part = requested[after] / base
        in_half = (part >= 0.45) & (part <= 0.5)
        if not 0.45 <= requested[output] / base <= 0.5 and int(in_half.sum()) < 2:
            in_half[:] = False  # nothing else is in half precision: it is something else, as what logits are made of
        result[after[((part >= 0.9) & (part <= 1)) | in_half]] = True
    return result


def _layers(scene: Scene) -> npt.NDArray[np.bool_]:
    """Of each module, and last of none, whether it is a layer with weights."""
    modules = scene.result.tape.modules
    # A Linear without parameters of its own has another module's: an output layer that shares the embedding's.
    has_weights = np.array([*(module.parameters > 0 or module.kind == "Linear" for module in modules), False])
    result: npt.NDArray[np.bool_] = has_weights & scene.is_leaf
    return result


def _is_in_chunks(scene: Scene, current: int, layer: int) -> bool:
    """Whether a last layer that is a model of its own runs several times in a step, and once more in the backward."""
    forwards, table = scene.fates.forwards, scene.result.tape.allocations
    alike = (forwards["module"] == forwards["module"][current]) & (forwards["step"] == forwards["step"][current])
    again = (table["module"] == layer) & (table["phase"] == Phase.RECOMPUTE)
    return int(alike.sum()) > 1 and bool(again.any())


def _output_of(scene: Scene, rows: Ints) -> int:
    """The one of a layer's allocations that has the size of its output; -1: none or several have, as in chunks."""
    requested = scene.result.tape.allocations["requested"][rows]
    fits = np.isin(requested, (2 * scene.of_output[rows], 4 * scene.of_output[rows])) & (requested > 0)
    return int(rows[fits][0]) if int(fits.sum()) == 1 else -1


def _in_backward(scene: Scene, member: int, layer: int, is_layer: npt.NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """What the backward after a forward makes until it reaches a layer, and what it makes in that layer."""
    fates, tape = scene.fates, scene.result.tape
    table, events = tape.allocations, tape.events
    following = int(np.searchsorted(fates.backwards["begin"], fates.forwards["end"][member]))
    if following == len(fates.backwards):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    begin, end = int(fates.backwards["begin"][following]), int(fates.backwards["end"][following])
    module = events["module"][begin:end]
    inside = np.flatnonzero(is_layer[module])
    others = inside[module[inside] != layer]
    reached = begin + int(inside[0]) if len(inside) else end
    left = begin + int(others[0]) if len(others) else end
    # Rows are in the order of their births.
    first, middle, last = np.searchsorted(table["born"], (begin, reached, left))
    before, within = np.arange(first, middle), np.arange(middle, last)
    passing = scene.category == Category.TEMPORARY
    return before[passing[before]], within[passing[within] & (table["module"][within] == layer)]


def _is_narrow(scene: Scene, layer: int, before_it: Sequence[int], output: int, base: int) -> bool:
    """Whether what the loss works on is not much larger than what the last layer is given.

    Args:
        layer: the last one.
        before_it: shape of what the one before it returned.
        output, base: bytes of the layer's output, and of the largest that the loss makes of it.
    """
    module = scene.result.tape.modules[layer]
    if 2 * output < base * 0.9:  # the logits are made by no layer: of a weight that is shared, after a norm
        return _WIDER * output > base
    width = module.output_shape[-1]
    size = max(1, output // max(1, int(np.prod(module.output_shape, dtype=np.int64))))
    given = module.parameters // size // width if module.parameters else (before_it or (width,))[-1]
    return "Conv" in module.kind or _WIDER * given > width


def _broadcast(scene: Scene) -> Iterator[Advice]:
    """A loss of ``(N, 1)`` predictions and ``(N,)`` targets, which broadcast to all pairs. Assumes that these are not
    meant, and that one number for each row takes their place.
    """
    pairs = _pairs(scene)
    if not scene.at(pairs):
        return
    tape = scene.result.tape
    rows = tape.modules[int(scene.fates.forwards["module"][scene.fates.last_begun(scene.moment.event)])].output_shape[0]
    yield Advice(
        saves=scene.saved(np.where(pairs, scene.block * (rows - 1) // rows, 0)),
        text=f"give predictions and targets one shape (output.squeeze(1)), if no pairs are meant: ({rows:,}, 1) and "
        f"({rows:,},) broadcast to ({rows:,}, {rows:,}), of which the loss makes "
        f"{counted(int((pairs & scene.moment.alive).sum()), 'tensor')} that are alive at once",
        is_cause=True,
    )


def _pairs(scene: Scene) -> npt.NDArray[np.bool_]:
    """What a loss, and the backward before it reaches a layer, makes of ``(N, 1)`` outputs that has ``N * N`` numbers,
    in every training step; where this is known of the moment's model.
    """
    fates, tape = scene.fates, scene.result.tape
    table = tape.allocations
    nothing = np.zeros(len(table), bool)
    current = fates.last_begun(scene.moment.event)
    root = int(fates.forwards["module"][current]) if current >= 0 else -1
    shape = tape.modules[root].output_shape if root >= 0 else ()
    if len(shape) != 2 or shape[1] != 1 or not _MANY_ROWS <= shape[0] < _NO_PAIRS:
        return nothing
    size_fits = np.isin(table["requested"], [size * shape[0] ** 2 for size in SIZES])
    square = size_fits & np.isin(scene.category, (Category.ACTIVATION, Category.TEMPORARY))
    after = np.where(table["born"] >= 0, table["forward"].astype(np.int64) - 1, -1)  # the forward that began last
    in_loss = square & (table["module"] < 0) & (table["phase"] == Phase.FORWARD)
    result = nothing
    for member in np.flatnonzero(fates.forwards["module"] == root).tolist():
        own = in_loss & (after == member)
        if own.any():
            before, _ = _in_backward(scene, member, -1, _layers(scene))
            result[before[square[before]]] = True
            result |= own
    return result


def _differences(scene: Scene) -> Iterator[Advice]:
    """Differences of all pairs of rows that a model returned, each as long as a row: a product has one number for each
    pair. Assumes that what a loss, and the backward, makes of exactly so many numbers is that.
    """
    fates, tape = scene.fates, scene.result.tape
    table = tape.allocations
    current = fates.last_begun(scene.moment.event)
    root = int(fates.forwards["module"][current]) if current >= 0 else -1
    shape = tape.modules[root].output_shape if root >= 0 else ()
    if len(shape) != 2 or shape[1] < _WIDER or not 1 < shape[0] < _NO_PAIRS:
        return
    rows, width = shape
    sizes = {size * int(np.prod(each.output_shape, dtype=np.int64)) for each in tape.modules for size in SIZES}
    found = np.isin(table["requested"], [*({size * rows**2 * width for size in SIZES} - sizes)])
    found &= np.isin(scene.category, (Category.ACTIVATION, Category.TEMPORARY)) & (table["born"] >= 0)
    if not (found & (table["module"] < 0) & (table["phase"] == Phase.FORWARD)).any():
        return
    many = counted(int((found & scene.moment.alive).sum()), "tensor")
    yield Advice(
        saves=scene.saved(np.where(found, scene.block * (width - 1) // width, 0)),
        text="compute distances of pairs by a product (torch.cdist, or |a|^2 + |b|^2 - 2 ab): the differences of "
        f"{rows:,} x {rows:,} rows of {width:,} numbers are {many} alive at once",
        is_cause=True,
    )


def _unused_rows(scene: Scene) -> Iterator[Advice]:
    """A last layer of which the model returns a few rows only, as the last word's logits. Assumes that these are picked
    or added up: where something else is done to all of them, they are needed.
    """
    fates, tape = scene.fates, scene.result.tape
    table = tape.allocations
    is_layer = _layers(scene)
    current = fates.last_begun(scene.moment.event)
    root = int(fates.forwards["module"][current]) if current >= 0 else -1
    returned = tape.modules[root].output_shape if root >= 0 else ()
    chosen = np.flatnonzero((fates.maker >= 0) & is_layer[table["module"]] & (table["phase"] == Phase.FORWARD))
    found, layer, part = np.zeros(len(table), bool), -1, 1
    for rows in grouped(chosen, fates.maker[chosen]):
        member = int(fates.maker[rows[0]])
        layer = int(table["module"][rows[-1]])
        shape = tape.modules[layer].output_shape
        ends = returned[:1] + returned[-1:]
        if fates.forwards["module"][member] != root or len(shape) <= len(returned) or shape[:1] + shape[-1:] != ends:
            continue
        part = int(np.prod(shape, dtype=np.int64)) // int(np.prod(returned, dtype=np.int64))
        output = _output_of(scene, rows[table["module"][rows] == layer])
        given = tape.modules[layer].parameters // max(1, tape.modules[layer].item_size) // shape[-1]
        if part < _WIDER or output < 0 or tape.modules[layer].kind != "Linear" or _WIDER * given > shape[-1]:
            continue
        before, within = _in_backward(scene, member, layer, is_layer)
        after = np.concatenate([before, within])
        found[after[table["requested"][after] == table["requested"][output]]] = True
        found[within[scene.category[within] == Category.TEMPORARY]] = True  # what adds a bias's gradient up, too
        found[output] = True
    if scene.at(found) and scene.trains:
        yield Advice(
            saves=scene.saved(np.where(found, scene.block * (part - 1) // part, 0)),
            text=f"give {shown_name(tape.modules[layer].name, 60)} only what is used of its output, as "
            f"head(hidden[:, -1]) in place of head(hidden)[:, -1]: the model returns one of {part:,} rows",
            is_cause=True,
        )


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (_chunked_loss, _broadcast, _differences, _unused_rows)
