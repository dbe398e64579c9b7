"""A smaller batch, in training and in evaluation. Knows no other advice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ...sizes import format_size
from ...tape.events import Category, Ints, Phase
from ..moment import peaks_of
from ..scene import SIZES, Scene
from .advised import Advice
from .reserved import tried

_CLOSE = 0.1
"""Less than this part of a saving is not told apart."""


def _smaller_batch(scene: Scene) -> Iterator[Advice]:
    """Assumes that activations, inputs, and temporaries of forward and backward are in proportion to the batch, but for
    those of a parameter's size: its gradient's parts, and its copy under autocast, and but for what cuDNN only tried.
    So are sparse gradients. Wrong for other scratch of libraries.
    What has a number for each pair of rows shrinks by three quarters.
    What outlives its step by more than a step is of no batch. Where a backward takes several forwards of a model that
    have a loss each, they are batches of their own, and half of each, twice, is as much.
    """
    if scene.evaluates or not scene.trains or _has_one_row(scene) or _takes_several(scene):
        return
    table = scene.result.tape.allocations
    category, requested = scene.category, table["requested"]
    passing = np.isin(table["phase"], (Phase.FORWARD, Phase.BACKWARD, Phase.RECOMPUTE))
    grows = np.isin(category, (Category.ACTIVATION, Category.TEMPORARY)) & passing
    parameters = np.unique(requested[category == Category.PARAMETER])
    of_a_parameter = np.isin(requested, np.concatenate([parameters, parameters // 2]))
    is_output = (scene.of_output > 0) & np.isin(requested // np.maximum(scene.of_output, 1), (2, 4))
    grows &= ~of_a_parameter | is_output
    only_tried = tried(scene)
    grows &= ~only_tried
    sparse = _sparse_gradients(scene)
    grows |= (category == Category.INPUT) | sparse
    grows &= _of_its_step(scene)
    shrinks = np.where(_of_pairs(scene), scene.block - scene.block // 4, scene.block // 2)
    less = scene.less(np.where(grows, shrinks, 0))
    alone, both = scene.saved_over_time(less), scene.saved_over_time(less - _accumulated(scene, sparse))
    proved = not scene.at(only_tried)  # what would be tried for half as many, nothing tells
    if both >= (1 - _CLOSE) * alone:
        yield Advice(saves=both, text="halve the batch and accumulate gradients over two", is_computed=proved)
    else:
        yield Advice(
            saves=alone,
            is_computed=proved,
            text="halve the batch; with gradients accumulated over two it saves "
            f"{'less' if both > 0 else 'nothing'}, as those of the first half are there beside the second",
        )


def _of_pairs(scene: Scene) -> npt.NDArray[np.bool_]:
    """What has exactly a number for each pair of the rows that a model returned, or as many as a row has, in some type.
    Where that is as large as what some layer returned, nothing tells.
    """
    tape = scene.result.tape
    shapes = [module.output_shape for module in tape.modules]
    roots = np.unique(scene.fates.forwards["module"]).tolist()
    returned = [shapes[root] for root in roots if root >= 0 and len(shapes[root]) == 2]
    pairs = {rows**2 * each for rows, width in returned for each in (1, width) if rows > 1}
    sizes = {size * each for each in pairs for size in SIZES}
    returns = [int(np.prod(shape, dtype=np.int64)) for shape in shapes]
    inputs = {*np.unique(tape.allocations["requested"][scene.category == Category.INPUT]).tolist()}
    sizes -= {size * each for each in returns for size in SIZES[:-1]} | inputs & {SIZES[-1] * each for each in returns}
    result: npt.NDArray[np.bool_] = np.isin(tape.allocations["requested"], [*sizes])
    return result


def _sparse_gradients(scene: Scene) -> npt.NDArray[np.bool_]:
    """Those with the rows of an embedding that a batch has used: a step makes their indices and their values, both of
    another size than their parameter, in whatever type. A single one is a buffer with the gradients of several.
    """
    table = scene.result.tape.allocations
    requested, names = table["requested"], table["name"]
    weights = (scene.category == Category.PARAMETER) & (names >= 0)
    size = np.zeros(len(scene.result.tape.names), np.int64)
    size[names[weights]] = requested[weights]
    found: npt.NDArray[np.bool_] = (scene.category == Category.GRADIENT) & (names >= 0)
    rows = np.flatnonzero(found)
    whole, own = size[names[rows]], requested[rows].astype(np.int64)
    rows = rows[(whole > 0) & ~np.any([own * 4 == whole * part for part in (1, 2, 4, 8, 16)], axis=0)]
    parts = np.stack([names[rows], table["step"][rows]], axis=1)
    _, group, count = np.unique(parts, axis=0, return_inverse=True, return_counts=True)
    found[:] = False
    found[rows[count[group.reshape(-1)] > 1]] = True
    return found


def _accumulated(scene: Scene, sparse: npt.NDArray[np.bool_]) -> Ints:
    """Bytes that are there beside a step's second half at each moment, and were not: the gradients of the first half,
    from its forward on; and each that the backward makes anew, until it has been added up and its module is left.
    Sparse ones have half of the rows in each half, and all in their sum.
    """
    tape = scene.result.tape
    table, forwards = tape.allocations, scene.fates.forwards
    extra = np.zeros(len(scene.result.timeline), np.int64)
    inside = np.append(np.flatnonzero(np.diff(tape.events["module"])) + 1, len(tape.events))  # where a module is left
    made = (scene.category == Category.GRADIENT) & (table["phase"] == Phase.BACKWARD) & (table["born"] >= 0)
    for row in np.flatnonzero(made).tolist():
        begun = np.searchsorted(forwards["step"], table["step"][row])
        if begun == len(forwards) or forwards["step"][begun] != table["step"][row]:
            continue
        if sparse[row]:
            died = table["died"][row]
            extra[forwards["begin"][begun] + 1 : int(died) + 1 if died >= 0 else None] += scene.block[row] // 2
            continue
        added_up = inside[min(np.searchsorted(inside, table["born"][row], side="right"), len(inside) - 1)]
        extra[forwards["begin"][begun] + 1 : added_up + 1] += scene.block[row]
    return extra


def _has_one_row(scene: Scene) -> bool:
    """Whether what every model returns has one row. Of one that returns a number first, its parts say it."""
    modules = scene.result.tape.modules
    tells = [len(module.output_shape) > 1 for module in modules]
    for index, module in enumerate(modules):  # a parent comes before its children
        if module.parent >= 0 and tells[module.parent]:
            tells[index] = True
    outermost = [
        module.output_shape[0]
        for module, told in zip(modules, tells, strict=True)
        if told and len(module.output_shape) > 1 and not (module.parent >= 0 and tells[module.parent])
    ]
    return bool(outermost) and all(rows == 1 for rows in outermost)


def _takes_several(scene: Scene) -> bool:
    """Whether a backward took several forwards of one model that were not of one batch; or, if memory ran out, several
    wait for one. Each has a loss of its own then. Without, they are of one batch: its twins, or its steps in time.
    """
    fates = scene.fates
    for members in fates.together.values():
        modules = fates.forwards["module"][members]
        for root in np.unique(modules).tolist():
            of_model = [each for each, module in zip(members, modules.tolist(), strict=True) if module == root]
            if len(of_model) > 1 and fates.has_losses(of_model):
                return True
    if not scene.moment.failed or not len(fates.forwards):
        return False
    current = fates.last_begun(scene.moment.event)
    waiting = np.arange(len(fates.forwards)) <= current
    waiting &= fates.forwards["made_graph"] & ~fates.is_used & ~fates.is_abandoned
    waiting &= fates.forwards["step"] == fates.forwards["step"][current]
    waiting &= fates.forwards["module"] == fates.forwards["module"][current]
    every = np.flatnonzero(waiting).tolist()
    return len(every) > 1 and fates.has_losses(every[:-1])


def _of_its_step(scene: Scene) -> npt.NDArray[np.bool_]:
    """Which allocations were gone a step after their own, or may be: they belong to a batch."""
    tape = scene.result.tape
    table, steps = tape.allocations, np.append(tape.events["step"], 0).astype(np.int64)
    last = int(steps.max(initial=0))
    gone = np.where(table["died"] >= 0, steps[table["died"]], last)
    result: npt.NDArray[np.bool_] = (table["born"] >= 0) & (gone <= table["step"].astype(np.int64) + 1)
    return result


def _batch_of_evaluation(scene: Scene) -> Iterator[Advice]:
    """A smaller batch where evaluation needs more than training. What it saves only a run tells."""
    training, _ = peaks_of(scene.result)
    if not scene.evaluates or training is None or any(each.with_graph for each in scene.result.tape.evaluations):
        return
    failed = scene.moment.failed
    needs = scene.moment.breakdown.allocated + (failed.requested if failed else 0)
    if needs - scene.at(scene.category == Category.OUTPUT) > training.allocated:  # outputs that are kept are no batch's
        yield Advice(
            saves=needs - training.allocated,
            text=f"use a smaller batch in evaluation: it needs {format_size(needs - training.allocated)} more than "
            f"training, which reached {format_size(training.allocated)}",
            is_computed=False,
        )


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (_smaller_batch, _batch_of_evaluation)
