"""Numbers of half the size: autocast, by the chain of layers that a forward goes through. Knows no other advice."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ...gpus import all_gpus
from ...tape.events import Category, Ints, Phase
from ...tape.owners import owners
from ..scene import Scene
from .advised import Advice

_OLDER = re.compile(r"\b(GTX|TITAN|Titan|RTX 20[5678]0|Quadro|[TPVKM]\d+|GV100)\b")
"""In the names of cards before Ampere, most of them."""
_HALF = re.compile(r"^(Linear|NonDynamicallyQuantizableLinear|Bilinear|(Conv|ConvTranspose)[123]d)$")
"""Classes of layers that work in half precision under autocast, whatever they are given."""
_FLOAT = re.compile(r"^(LayerNorm|GroupNorm|InstanceNorm[123]d|Softmax|LogSoftmax|Embedding|\w*Loss)$")
"""Those that work in float32."""
_SAME = re.compile(
    r"^(\w*ReLU6?|GELU|SiLU|Mish|ELU|Tanh|Sigmoid|Hard\w+|Dropout[123]?d?|BatchNorm[123]d|SyncBatchNorm|Flatten|Identity|"
    r"(Adaptive)?(Max|Avg)Pool[123]d|Upsample|Sequential|ModuleList|\w*Pad[123]d)$"
)
"""Those that return what they are given."""
_KNOWN = 0.9
"""The part of the activations, at least, that has to be of such layers; what others do, their code says."""


def _autocast(scene: Scene) -> Iterator[Advice]:
    """Half precision under autocast, where most of the modules' outputs are float32. A figure only where most of what
    is kept was made by layers whose types are known. Autocast keeps a copy of each weight that it casts, to the end of
    the backward, and one of what a layer of another type is given.
    """
    kept = (scene.category == Category.ACTIVATION) & ~scene.left_behind
    if not scene.on_gpu or not _mostly_float32(scene, kept) or (scene.evaluates and scene.trains):
        return
    less, is_known = _halved(scene, kept)
    lacks_bfloat16 = _lacks_bfloat16(scene.result.device_name)
    kind = "float16" if lacks_bfloat16 else "bfloat16"
    yield Advice(
        saves=scene.saved_over_time(less),
        text=f'run the forward, float32 now, under torch.autocast("cuda", torch.{kind})'
        + ", with a torch.amp.GradScaler" * (lacks_bfloat16 and scene.trains)
        + ": what it saves depends on the code of its layers" * (not is_known),
        is_computed=is_known,
    )


def _halved(scene: Scene, kept: npt.NDArray[np.bool_]) -> tuple[Ints, bool]:
    """Bytes that are not there at each moment, and whether the types of most of what is kept are known."""
    tape = scene.result.tape
    table = tape.allocations
    kinds = [module.kind for module in tape.modules]
    works = np.array([*map(_works_in, kinds), ""])[table["module"]]
    rows = np.flatnonzero(kept & (table["born"] >= 0) & (scene.of_output > 0))
    weights = np.zeros(len(table), np.int64)
    halves = np.zeros(len(tape.modules) + 1, bool)
    is_half = False
    for row, following in zip(rows.tolist(), [*rows[1:].tolist(), -1], strict=True):
        how = works[row]
        is_last = following < 0 or scene.fates.maker[following] != scene.fates.maker[row]
        then = "float" if is_last else works[following]  # losses work in float32
        if table["module"][row] != table["module"][following] and how:
            is_half = how == "half" or (how == "same" and is_half)
        # What a layer of the other type takes is kept as a copy of that layer's type.
        becomes_half = then == "half" if then in ("half", "float") and _is_whole(scene, row) else is_half
        if how and becomes_half and table["requested"][row] > 1024:
            weights[row] = scene.block[row] // 2
            halves[table["module"][row]] |= is_half
    # The gradient of what a layer returns is as large as that, and is made in the backward of the one that follows.
    sizes = np.unique(4 * scene.of_output[halves[table["module"]]])
    passing = (scene.category == Category.TEMPORARY) & (table["phase"] == Phase.BACKWARD) & (table["module"] >= 0)
    passing &= np.isin(table["requested"], sizes)
    weights[passing] = scene.block[passing] // 2
    if (
        len(rows) and works[rows[0]] == "half"
    ):  # a copy of the batch is kept for the backward, and the batch if it is held
        inputs = np.flatnonzero(scene.category == Category.INPUT)
        of_graph = np.isin(tape.events["phase"][table["died"][inputs]], (Phase.BACKWARD,)) & (
            table["died"][inputs] >= 0
        )
        weights[inputs] = np.where(of_graph, 1, -1) * (scene.block[inputs] // 2)
    casts = np.array([*(_works_in(kind) == "half" for kind in kinds), False])
    copies = (
        int(scene.block[scene.moment.alive & (scene.category == Category.PARAMETER) & casts[owners(tape)]].sum()) // 2
    )
    phase = np.append(Phase.OUTSIDE, tape.events["phase"])
    less = scene.less(weights)
    less -= np.where(np.isin(phase, (Phase.FORWARD, Phase.BACKWARD, Phase.RECOMPUTE)), copies, 0)
    alive = kept & scene.moment.alive
    return less, scene.at(alive & (works != "")) >= _KNOWN * scene.at(alive)


def _is_whole(scene: Scene, row: int) -> bool:
    """Whether an allocation has the size of what its module returns, in float32."""
    return bool(scene.result.tape.allocations["requested"][row] == 4 * scene.of_output[row])


def _works_in(kind: str) -> str:
    """``"half"``, ``"float"``, ``"same"``; empty: not known."""
    for name, pattern in (("half", _HALF), ("float", _FLOAT), ("same", _SAME)):
        if pattern.match(kind):
            return name
    return ""


def _lacks_bfloat16(device_name: str) -> bool:
    """Whether a card is older than capability 8.0, by its name. A name that says nothing is taken for a newer one's."""
    for gpu in all_gpus():
        if gpu.product == device_name:
            return gpu.capability < (8, 0)
    return _OLDER.search(device_name) is not None


def _mostly_float32(scene: Scene, activation: npt.NDArray[np.bool_]) -> bool:
    requested = scene.result.tape.allocations["requested"]
    known = activation & (scene.of_output > 0)
    float32 = int(requested[known & (requested == 4 * scene.of_output)].sum())
    half = int(requested[known & (requested == 2 * scene.of_output)].sum())
    return float32 > 9 * half


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (_autocast,)
