"""Buffers in which gradients are reduced among ranks. Knows no other advice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ...sizes import format_size
from ...tape.events import Category, Phase
from ..edits import Edit
from ..scene import Scene
from .advised import Advice


def _gradients_beside_buckets(scene: Scene) -> Iterator[Advice]:
    """Gradients that DDP copies into its buckets, which are there to the end and have room for every one of them.
    Assumes that each goes as soon as it is made, as its copy does instead. Wrong if the program replaces a gradient
    that lies in a bucket, which DDP then makes once more. What is there when DDP makes its buckets anew, in the second
    step, holds the first ones, and saves nothing.
    """
    tape = scene.result.tape
    table, passes = tape.allocations, tape.passes
    gradients = scene.category == Category.GRADIENT
    backwards = passes["begin"][passes["phase"] == Phase.BACKWARD]
    if not len(backwards) or not gradients.any():
        return
    stays = (table["died"] < 0) | (table["died"] >= passes["end"].max())
    buckets = (scene.category == Category.COMMUNICATION) & stays & (table["born"] < backwards[-1])
    size = int(table["requested"][buckets].sum())
    alive = np.zeros(len(tape.events) + 1, np.int64)
    given = table["requested"].astype(np.int64)
    np.add.at(alive, np.maximum(table["born"], 0)[gradients], given[gradients])
    np.add.at(alive, table["died"][gradients & (table["died"] >= 0)], -given[gradients & (table["died"] >= 0)])
    parameters = int(table["requested"][scene.category == Category.PARAMETER].sum())
    if not int(np.cumsum(alive).max()) <= size <= parameters:
        return  # none, or buffers of something else
    made = int(table["born"][buckets].max())
    hold = gradients & (table["born"] < made) & ((table["died"] < 0) | (table["died"] > made))
    edit = Edit(np.where(gradients & ~hold, scene.block, 0), table["born"].astype(np.int64) + 1)
    yield Advice(
        saves=scene.saved(edit.smaller, edit.since),
        edit=edit,
        text="give DistributedDataParallel gradient_as_bucket_view=True: gradients then lie in its buckets "
        f"({format_size(size)}), not beside them",
    )


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (_gradients_beside_buckets,)
