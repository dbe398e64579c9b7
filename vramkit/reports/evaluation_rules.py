"""What would lower a peak in evaluation: one rule a kind of advice. Knows results, not which is worth telling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..sizes import format_size
from ..tape.events import Category, Phase
from ..tape.usage import models_of
from .moment import peaks_of
from .rules import Advice
from .scene import Scene
from .tree import shown_name


def _graphs_of_evaluation(scene: Scene) -> Iterator[Advice]:
    """Graphs of forwards in evaluation, of which the attribution saw that nothing used them. Assumes that without them
    only two tensors would be there, the largest: what a layer is given, and returns. Wrong where outputs are kept.
    """
    tape = scene.result.tape
    kept = (scene.category == Category.ACTIVATION) & (tape.allocations["phase"] == Phase.EVALUATION)
    model_of = np.append(models_of(tape.modules), -1).astype(np.int64)[tape.allocations["module"]]
    for each in tape.evaluations:
        if each.with_graph:
            alone = len(tape.evaluations) == 1
            weights = np.where(kept & ((model_of == each.module) | (alone & (model_of < 0))), scene.block, 0)
            size = scene.at(weights > 0)
            weights[np.argsort(weights * scene.moment.alive, kind="stable")[-2:]] = 0  # of equal ones the last
            of = f"of its {each.forwards:,} " * (each.with_graph < each.forwards)
            one = each.with_graph == each.forwards == 1
            graphs = "1 forward made a graph" if one else f"{each.with_graph:,} {of}forwards made graphs"
            yield Advice(
                saves=scene.saved(weights),
                text=f"evaluate {shown_name(tape.modules[each.module].name)} under torch.no_grad(): {graphs} "
                f"that no backward followed, and {format_size(size)} of {'it is' if one else 'them are'} alive",
            )


def _batch_of_evaluation(scene: Scene) -> Iterator[Advice]:
    """A smaller batch where evaluation needs more than training. What it saves only a run tells."""
    training, _ = peaks_of(scene.result)
    if not scene.evaluates or training is None or any(each.with_graph for each in scene.result.tape.evaluations):
        return
    failed = scene.moment.failed
    needs = scene.moment.breakdown.allocated + (failed.requested if failed else 0)
    if needs > training.allocated:
        yield Advice(
            saves=needs - training.allocated,
            text=f"use a smaller batch in evaluation: it needs {format_size(needs - training.allocated)} more than "
            f"training, which reached {format_size(training.allocated)}",
            is_computed=False,
        )


def _gradients_in_evaluation(scene: Scene) -> Iterator[Advice]:
    """Gradients that an optimizer's step has used, and that are still there while models are evaluated. Those that no
    optimizer has used yet are being accumulated, and must stay.
    """
    phase = scene.result.tape.events["phase"]
    if not scene.evaluates:
        return
    is_work = ~np.isin(phase, (Phase.OUTSIDE, Phase.EVALUATION))
    last = np.maximum.accumulate(np.where(is_work, np.arange(len(phase)), -1))
    used = (phase == Phase.EVALUATION) & (last >= 0) & (phase[last] == Phase.OPTIMIZER)
    less = scene.less(np.where(scene.category == Category.GRADIENT, scene.block, 0))
    less[np.append(True, ~used)] = 0
    yield Advice(
        saves=scene.saved_over_time(less),
        text="call optimizer.zero_grad() before evaluation: gradients of the step before are alive during it",
    )


EVALUATION_RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (
    _graphs_of_evaluation,
    _batch_of_evaluation,
    _gradients_in_evaluation,
)
