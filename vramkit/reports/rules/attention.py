"""Attention that makes its weights. Knows no other advice."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ...sizes import format_size
from ...tape.events import Category, Ints, Phase
from ..layout import counted
from ..scene import Scene
from ..tree import shown_name
from .advised import Advice

_LONG = 1 << 20
"""No dimension is so long: a file may say what it likes."""
_HIDDEN = 4
"""A hidden layer is so many times as wide, at most, as what it is given."""
_BUT = ", but for bfloat16, which has no such kernel on this card"
_WIDE = 3
"""Queries, keys and values together are so many times as wide as what attention returns."""


def _weights(scene: Scene) -> Iterator[Advice]:
    """``nn.MultiheadAttention`` that returns its weights, as it does by default. Assumes that nobody uses them, and
    that scaled_dot_product_attention has a kernel that makes none.
    """
    tape = scene.result.tape
    found = np.zeros(len(tape.allocations), bool)
    named = []
    for index, module in enumerate(tape.modules):
        if module.kind == "MultiheadAttention" and len(module.output_shape) == 3:
            rows = _of_module(scene, index, module.output_shape)
            if rows.any():
                found |= rows
                named.append(module.name)
    if not scene.at(found):
        return
    yield Advice(
        saves=scene.saved(np.where(found, scene.block, 0)),
        is_computed=not _may_lack_kernels(scene),
        text=f"call {shown_name(named[0], 60)}{' and others' * (len(named) > 1)} with need_weights=False, if nobody "
        f"uses them: {counted(int((found & scene.moment.alive).sum()), 'tensor')} of attention weights, "
        f"{format_size(scene.at(found))}, are there, and scaled_dot_product_attention makes none"
        + _BUT
        * _may_lack_kernels(scene),
    )


def _may_lack_kernels(scene: Scene) -> bool:
    """Whether scaled_dot_product_attention itself may have made the weights: an older card has no kernel for bfloat16
    that makes none. Nothing tells that type from float16, which has one.
    """
    return scene.lacks_bfloat16 and not scene.is_mostly_float32


def _of_module(scene: Scene, index: int, shape: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Weights of all heads, and their mean, which only need_weights=True makes: else nothing. A sequence is in
    dimension 1 of what is returned, or in dimension 0. As long as wide, it is as large as the mean.
    """
    table = scene.result.tape.allocations
    inside = (table["module"] == index) & np.isin(scene.category, (Category.ACTIVATION, Category.TEMPORARY))
    forward = table["phase"] != Phase.BACKWARD
    requested = table["requested"].astype(np.int64)
    if not all(0 < length < _LONG for length in shape):
        return np.zeros(len(table), bool)
    for batch, length in (shape[:2], shape[1::-1]):
        if length == shape[2]:
            continue
        for size in (4, 2):
            if not (inside & (requested == size * batch * length * shape[2])).any():
                continue  # what is returned is of another type, so that half as much is something else
            mean = size * batch * length * length
            heads = inside & (requested % mean == 0) & (requested > size * _WIDE * batch * length * shape[2])
            means = inside & (requested == mean)
            if (heads & forward).any() and (means & forward).any():
                found: npt.NDArray[np.bool_] = heads | means
                return found
    return np.zeros(len(table), bool)


def _merged_masks(scene: Scene) -> Iterator[Advice]:
    """Masks that each ``nn.MultiheadAttention`` merges for itself, of rows that are hidden and of padding, and keeps
    for its kernel's backward: one tensor of pairs for all heads. Where attention makes weights, it makes several.
    Assumes that all are given the same.
    """
    tape, table = scene.result.tape, scene.result.tape.allocations
    masks, counts = np.zeros(len(table), bool), set[int]()
    for index, module in enumerate(tape.modules):
        if module.kind == "MultiheadAttention" and _fits(module.output_shape):
            of_module = _of_pairs(scene, index, module.output_shape)
            masks[of_module] = True
            counts.add(len(of_module))
    here = masks & scene.moment.alive
    if int(here.sum()) < 2 or len(counts - {0}) > 1:
        return
    first = np.zeros(len(table), bool)  # of each forward
    rows = np.flatnonzero(masks)
    first[rows[np.unique(scene.fates.maker[rows], return_index=True)[1]]] = True
    size = format_size(int(table["requested"][here][0]))
    yield Advice(
        saves=scene.saved(np.where(masks & ~first, scene.block, 0)),
        text=f"merge the attention mask and the padding mask once, in float, for all layers: {int(here.sum())} of them "
        f"keep a mask of (batch, heads, rows, rows) of their own, {size} each; or leave the padding mask out where a "
        "causal mask hides padding that comes last",
        is_cause=True,
    )


def _of_pairs(scene: Scene, index: int, shape: Sequence[int]) -> Ints:
    """What a module makes in its forwards, once in each, that has a number for each pair of rows of each head."""
    table, maker = scene.result.tape.allocations, scene.fates.maker
    inside = (table["module"] == index) & (table["phase"] == Phase.FORWARD) & (maker >= 0)
    requested = table["requested"].astype(np.int64)
    width = shape[2]
    for batch, length in (shape[:2], shape[1::-1]):
        for size in (4, 2):
            mean = size * batch * length * length
            heads = requested // mean
            rows = np.flatnonzero(inside & (requested % mean == 0) & (heads > 1) & (heads <= width))
            rows = np.array([row for row in rows.tolist() if not _projects(int(heads[row]) * length, width)], np.int64)
            kept = scene.category[rows] == Category.ACTIVATION
            returned = (inside & (requested == size * batch * length * width)).any()
            if returned and len(rows) and kept.all() and len(np.unique(maker[rows])) == len(rows):
                return rows
    return np.zeros(0, np.int64)


def _by_hand(scene: Scene) -> Iterator[Advice]:
    """Attention that is written out: a product, a softmax, a dropout, another product. Assumes what `_weights` does.

    Where a softmax or a dropout is a module of its own, its shape tells weights from all else. Elsewhere their size
    has to, in a module that is called attention: a size that a projection could have as well tells nothing.
    """
    tape = scene.result.tape
    below = [list[int]() for _ in tape.modules]
    for index, module in enumerate(tape.modules):
        if module.parent >= 0:
            below[module.parent].append(index)
    wanted = dict[int, set[int]]()  # sizes of weights, by the module that makes them
    named, in_heads = [], True
    made = _made_in_forwards(scene)
    for index, module in enumerate(tape.modules):
        if not module.calls or module.kind == "MultiheadAttention" or not _fits(module.output_shape):
            continue
        plain = [each for each in below[index] if scene.is_leaf[each] and not tape.modules[each].parameters]
        shapes = [tape.modules[each].output_shape for each in plain]
        widths = {tape.modules[each].output_shape[-1:] for each in below[index] if each not in plain}
        weights = [shape for shape in shapes if shape[-1:] not in widths and _is_of_pairs(shape, module.output_shape)]
        if weights:
            sizes = {item * int(np.prod(weights[0])) for item in (4, 2, 1)}
        elif "attention" in module.kind.lower() or "attn" in module.kind.lower():
            sizes, plain = _sizes_of_pairs(made.get(index, {}), module.output_shape), []
        else:
            continue
        makers = [each for each in (index, *plain) if not sizes.isdisjoint(made.get(each, {}))]
        if makers:
            wanted.update((each, sizes) for each in makers)
            named.append(module.name)
            in_heads &= not weights or len(weights[0]) > 3
    found = _of_sizes(scene, wanted)
    if not scene.at(found):
        return
    four = "" if in_heads else " (of tensors in (batch, heads, rows, width): torch up to 2.11 makes them otherwise)"
    alive = found & scene.moment.alive
    yield Advice(
        saves=scene.saved(np.where(found, scene.block, 0)),
        is_computed=not _may_lack_kernels(scene),
        text=f"let F.scaled_dot_product_attention do the attention of {shown_name(named[0], 60)}"
        f"{' and others' * (len(named) > 1)}{four}, if nobody else uses its weights (transformers: "
        f'attn_implementation="sdpa"): {counted(int(alive.sum()), "tensor")} of them, '
        f"{format_size(scene.at(found))}, are there, and its kernels make none" + _BUT * _may_lack_kernels(scene),
    )


def _fits(shape: Sequence[int]) -> bool:
    """Whether this is what attention returns: (batch, sequence, width)."""
    return len(shape) == 3 and all(0 < length < _LONG for length in shape)


def _is_of_pairs(shape: Sequence[int], returned: Sequence[int]) -> bool:
    """Whether a shape is that of weights, with or without heads: of each row as many numbers as there are rows."""
    if not 3 <= len(shape) <= 4 or shape[-1] != shape[-2] or shape[-1] not in returned[:2]:
        return False
    heads = shape[1] if len(shape) == 4 else 1
    return heads > 0 and shape[-1] != returned[-1] and returned[-1] % heads == 0


def _made_in_forwards(scene: Scene) -> dict[int, dict[int, int]]:
    """What each module made in its forwards: how many allocations of how many bytes."""
    table = scene.result.tape.allocations
    rows = table[(table["phase"] == Phase.FORWARD) & (table["module"] >= 0)]
    pairs, counts = np.unique(np.stack([rows["module"], rows["requested"]]), axis=1, return_counts=True)
    made = dict[int, dict[int, int]]()
    for (module, size), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        made.setdefault(module, {})[size] = count
    return made


def _sizes_of_pairs(made: Mapping[int, int], returned: Sequence[int]) -> set[int]:
    """Bytes of what a module made that can only be weights of each pair of rows, once for each of some heads; and of
    what says which of them a dropout kept.
    """
    batch, length, width = returned
    found = set[int]()
    for size, count in made.items():
        for item in (4, 2):
            heads, rest = divmod(size, item * batch * length * length)
            if count > 1 and heads and not rest and width % heads == 0 and not _projects(heads * length, width):
                found |= {size, size // item}
    return found


def _projects(wide: int, width: int) -> bool:
    """Whether queries, keys and values, a part of them, or a hidden layer could be so wide."""
    return width % wide == 0 or (wide % width == 0 and wide <= _HIDDEN * width)


def _of_sizes(scene: Scene, wanted: Mapping[int, Collection[int]]) -> npt.NDArray[np.bool_]:
    """What some modules made of some sizes, each its own, while they ran forward or backward."""
    table = scene.result.tape.allocations
    passing = np.isin(scene.category, (Category.ACTIVATION, Category.TEMPORARY)) & np.isin(table["module"], [*wanted])
    found = np.zeros(len(table), bool)
    for row in np.flatnonzero(passing).tolist():
        found[row] = int(table["requested"][row]) in wanted[int(table["module"][row])]
    return found


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (_weights, _merged_masks, _by_hand)
