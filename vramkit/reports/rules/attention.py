"""Attention that makes its weights. Knows no other advice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ...sizes import format_size
from ...tape.events import Category, Phase
from ..layout import counted
from ..scene import Scene
from ..tree import shown_name
from .advised import Advice

_LONG = 1 << 20
"""No dimension is so long: a file may say what it likes."""
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
        text=f"call {shown_name(named[0], 60)}{' and others' * (len(named) > 1)} with need_weights=False, if nobody "
        f"uses them: {counted(int((found & scene.moment.alive).sum()), 'tensor')} of attention weights, "
        f"{format_size(scene.at(found))}, are there, and scaled_dot_product_attention makes none",
    )


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
            mean = size * batch * length * length
            heads = inside & (requested % mean == 0) & (requested > size * _WIDE * batch * length * shape[2])
            means = inside & (requested == mean)
            if (heads & forward).any() and (means & forward).any():
                found: npt.NDArray[np.bool_] = heads | means
                return found
    return np.zeros(len(table), bool)


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (_weights,)
