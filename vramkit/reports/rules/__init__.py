"""What would lower a peak: one file a family of advice. Knows results, not which advice is worth telling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ..scene import Scene
from . import (
    attention,
    batches,
    buckets,
    checkpoints,
    discarded,
    earlier,
    elementwise,
    held,
    joined,
    losses,
    models,
    optimizers,
    outputs,
    precision,
    reserved,
    retained,
    summed,
    teachers,
)
from .advised import Advice as Advice

RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (
    *earlier.RULES,
    *outputs.RULES,
    *held.RULES,
    *summed.RULES,
    *joined.RULES,
    *retained.RULES,
    *teachers.RULES,
    *discarded.RULES,
    *models.RULES,
    *checkpoints.RULES,
    *precision.RULES,
    *batches.RULES,
    *optimizers.RULES,
    *buckets.RULES,
    *losses.RULES,
    *attention.RULES,
    *elementwise.RULES,
    *reserved.RULES,
)
