"""Numbers of half the size: autocast, by the chain of layers that a forward goes through, and masks that every layer
casts. Knows no other advice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ...sizes import format_size
from ...tape.events import Category, Ints, Phase
from ...tape.owners import owners
from ..edits import Edit
from ..scene import Scene
from .advised import Advice

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
_DOUBLE = 8
"""Bytes of a number in double precision."""
_FEW = 3
"""So many layers, at least, have to do the same: one could by chance."""
_LARGE = 100
"""What is less than this part of all is not looked at."""

_BEFORE = 100
"""So many allocations before a softmax, at most, its scores were made."""


def _autocast(scene: Scene) -> Iterator[Advice]:
    """Half precision under autocast, where most of the modules' outputs are float32. A figure only where most of what
    is kept was made by layers whose types are known. Autocast keeps a copy of each weight that it casts, to the end of
    the backward, and one of what a layer of another type is given.
    """
    kept = np.isin(scene.category, (Category.ACTIVATION, Category.OUTPUT))
    if not scene.on_gpu or not scene.is_mostly_float32 or (scene.evaluates and scene.trains):
        return
    less, is_known = _halved(scene, kept)
    casts_masks = _would_cast_masks(scene, kept, scene.saved_over_time(less))
    is_known &= not casts_masks
    kind = "float16" if scene.lacks_bfloat16 else "bfloat16"
    yield Advice(
        saves=scene.saved_over_time(less),
        text=f'run the forward, float32 now, under torch.autocast("cuda", torch.{kind})'
        + ", with a torch.amp.GradScaler" * (scene.lacks_bfloat16 and scene.trains)
        + ": what it saves depends on the code of its layers" * (not is_known)
        + f"; where they cast a float32 mask, each keeps a copy, so make it in {kind} once" * casts_masks,
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
    beside, until = np.zeros((2, len(table)), np.int64)
    is_half = False
    for row, following in zip(rows.tolist(), _following(rows, table["module"][rows]), strict=True):
        how = works[row]
        is_last = following < 0 or scene.fates.maker[following] != scene.fates.maker[row]
        then = "float" if is_last else works[following]  # losses work in float32
        if how:
            is_half = how == "half" or (how == "same" and is_half)
        if (then, is_half) in (("float", True), ("half", False)) and not is_last and _is_whole(scene, row):
            # What is copied in the other type is held until the layer, or the block, that it is given to has returned.
            beside[row] = scene.block[row] // 2 if is_half else scene.block[row]
            until[row] = _returned(scene, rows, row, following)
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
    if len(rows) and works[rows[0]] == "half":
        # A copy of the batch is kept for the backward, and the batch until the forward has ended, or while it is held.
        inputs = np.flatnonzero(scene.category == Category.INPUT)
        died = table["died"][inputs]
        of_graph = (tape.events["phase"][died] == Phase.BACKWARD) & (died >= 0)
        weights[inputs] = np.where(of_graph, 1, -1) * (scene.block[inputs] // 2)
        given = table["forward"][inputs[of_graph]]
        beside[inputs[of_graph]] = scene.block[inputs[of_graph]]
        until[inputs[of_graph]] = np.append(scene.fates.forwards["end"], 0)[
            np.minimum(given, len(scene.fates.forwards))
        ]
    casts = np.array([*(_works_in(kind) == "half" for kind in kinds), False])
    copies = (
        int(scene.block[scene.moment.alive & (scene.category == Category.PARAMETER) & casts[owners(tape)]].sum()) // 2
    )
    phase = np.append(Phase.OUTSIDE, tape.events["phase"])
    less = scene.less(weights) - scene.less(beside) + scene.less(beside, until)
    less -= np.where(np.isin(phase, (Phase.FORWARD, Phase.BACKWARD, Phase.RECOMPUTE)), copies, 0)
    alive = kept & scene.moment.alive
    return less, scene.at(alive & (works != "")) >= _KNOWN * scene.at(alive)


def _following(rows: Ints, module: Ints) -> list[int]:
    """Of each row the next one that another module made; -1: none. Beside its output a norm keeps what it computed."""
    begins = np.append(np.flatnonzero(np.diff(module)) + 1, len(rows))
    following = np.append(rows, -1)[begins[np.searchsorted(begins, np.arange(len(rows)), side="right")]]
    result: list[int] = following.tolist()
    return result


def _returned(scene: Scene, rows: Ints, row: int, following: int) -> int:
    """The event at which the layer after a row, or the block that begins with it, has returned."""
    modules, table = scene.result.tape.modules, scene.result.tape.allocations
    outer, inner = (modules[int(table["module"][each])].parent for each in (row, following))
    for each in rows[np.searchsorted(rows, following) :].tolist():
        module = int(table["module"][each])
        if scene.fates.maker[each] != scene.fates.maker[row]:
            break
        if (modules[module].parent != inner) if inner != outer else (module != table["module"][following]):
            return int(table["born"][each])
    return int(scene.fates.forwards["end"][scene.fates.maker[row]])


def _is_whole(scene: Scene, row: int) -> bool:
    """Whether an allocation has the size of what its module returns, in float32."""
    return bool(scene.result.tape.allocations["requested"][row] == 4 * scene.of_output[row])


def _works_in(kind: str) -> str:
    """``"half"``, ``"float"``, ``"same"``; empty: not known."""
    for name, pattern in (("half", _HALF), ("float", _FLOAT), ("same", _SAME)):
        if pattern.match(kind):
            return name
    return ""


# -- masks -------------------------------------------------------------------------------------------------------------


def _cast_masks(scene: Scene) -> Iterator[Advice]:
    """A float32 mask of which each attention keeps a copy of half the size, as `scaled_dot_product_attention` makes one
    under autocast. A boolean mask is no remedy: each layer makes such a copy of it, too. Assumes that what comes once
    in each layer, and is as large as nothing that the layer or one in it returns, is that copy.
    """
    table, category = scene.result.tape.allocations, scene.category
    rows = np.flatnonzero(_masks(scene))
    for row in rows[np.unique(table["requested"][rows], return_index=True)[1]].tolist():
        size = int(table["requested"][row])
        copies = _copies(scene, size)
        if not len(copies):
            continue
        weights = np.zeros(len(table), np.int64)
        weights[copies] = scene.block[copies]
        masks = (table["requested"] == size) & (category == category[row]) & (table["module"] == table["module"][row])
        weights[masks] = scene.block[masks] // 2
        layers = len(np.unique(table["module"][copies]))
        yield Advice(
            saves=scene.saved(weights),
            edit=Edit(weights),
            text="make the attention mask once in the half precision of the layers (mask.to(torch.float16), or "
            f"bfloat16): it is float32, and each of {layers:,} modules keeps a copy of it in half precision, "
            f"{format_size(size // 2)}",
            is_cause=True,
        )
        return


def _added_masks(scene: Scene) -> Iterator[Advice]:
    """A float32 mask that attention adds to scores in half precision, which makes float32 of them before the softmax.
    Assumes that what comes once in each layer between scores in half precision and the softmax, twice as large and
    gone at once, is the sum. Wrong where a layer asks for float32 itself: so there is no figure.
    """
    table, modules = scene.result.tape.allocations, scene.result.tape.modules
    rows = np.flatnonzero(_masks(scene))
    forward = (table["phase"] == Phase.FORWARD) & (table["module"] >= 0) & (scene.fates.maker >= 0)
    softmax = forward & (scene.category == Category.ACTIVATION)
    for size in np.unique(table["requested"][rows]).tolist():
        kept = np.flatnonzero(softmax & (table["requested"] >= size) & (table["requested"] % size == 0))
        kept = kept[[not _works_in(modules[module].kind) for module in table["module"][kept].tolist()]]
        for scores in np.unique(table["requested"][kept]).tolist():
            of_size = kept[table["requested"][kept] == scores]
            layers = np.unique(table["module"][of_size])
            if len(layers) < _FEW or not _is_square(scene, layers, scores // 4):
                continue
            if all(_is_summed_before(scene, row, scores) for row in of_size[:_FEW].tolist()):
                yield Advice(
                    saves=size // 2 + scores // 2,
                    text="make the attention mask once in the half precision of the layers (mask.to(torch.float16), or "
                    f"bfloat16): it is float32, and makes float32 of the scores of {len(layers):,} modules, "
                    f"{format_size(scores)} of {format_size(scores // 2)} each",
                    is_computed=False,
                    is_cause=True,
                )
                return


def _is_summed_before(scene: Scene, row: int, size: int) -> bool:
    """Whether a module made half as many bytes, and then so many that it did not keep, before such an allocation."""
    table = scene.result.tape.allocations
    before = np.arange(max(0, row - _BEFORE), row)
    before = before[
        (table["module"][before] == table["module"][row]) & (scene.fates.maker[before] == scene.fates.maker[row])
    ]
    sizes = table["requested"][before].tolist()
    if size not in sizes or size // 2 not in sizes:
        return False
    summed = int(before[sizes.index(size)])
    return sizes.index(size // 2) < sizes.index(size) and bool(scene.category[summed] == Category.TEMPORARY)


def _copies(scene: Scene, size: int) -> Ints:
    """What modules of one class keep of a mask of some bytes, half of them each; nothing where that is not certain."""
    table = scene.result.tape.allocations
    forward = (table["phase"] == Phase.FORWARD) & (table["module"] >= 0)
    found = np.flatnonzero(forward & (scene.category == Category.ACTIVATION) & (table["requested"] == size // 2))
    kinds = np.array([*(module.kind for module in scene.result.tape.modules), ""])
    for kind in np.unique(kinds[table["module"][found]]).tolist():
        copies: Ints = found[kinds[table["module"][found]] == kind]
        modules = np.unique(table["module"][copies])
        if _works_in(kind):
            continue  # a copy of what it is given
        if len(modules) < _FEW or not _is_square(scene, modules, size // 4) or _is_returned(scene, modules, size):
            continue
        pairs = np.stack([scene.fates.maker[copies], table["module"][copies]])
        as_large = forward & np.isin(table["module"], modules) & np.isin(table["requested"], (size, size // 2))
        if np.unique(pairs, axis=1).shape[1] == int(as_large.sum()):  # else scores, or what is made of them
            return copies
    return found[:0]


def _would_cast_masks(scene: Scene, kept: npt.NDArray[np.bool_], saves: int) -> bool:
    """Whether copies of a mask, one in each layer of an unknown class, could matter beside what autocast saves."""
    tape = scene.result.tape
    index = np.unique(tape.allocations["module"][kept & scene.moment.alive & (tape.allocations["module"] >= 0)])
    modules = np.array([each for each in index.tolist() if not _works_in(tape.modules[each].kind)], np.int64)
    sizes = np.unique(tape.allocations["requested"][_masks(scene)]).tolist()
    return any(10 * len(modules) * size > saves and _is_square(scene, modules, size // 4) for size in sizes)


def _masks(scene: Scene) -> npt.NDArray[np.bool_]:
    """What is there at the moment, large, was made by no layer, and has as many numbers as nothing that one returns."""
    table = scene.result.tape.allocations
    rows = scene.moment.alive & np.isin(scene.category, (Category.INPUT, Category.OTHER, Category.ACTIVATION))
    rows &= (scene.block * 1000 > scene.moment.breakdown.allocated) & (table["requested"] % 4 == 0)
    kinds = [_works_in(module.kind) for module in scene.result.tape.modules]
    result: npt.NDArray[np.bool_] = rows & (np.array([*kinds, ""])[table["module"]] == "")
    return result & ~np.isin(table["requested"], 4 * np.unique(scene.of_output))


def _is_square(scene: Scene, modules: Ints, elements: int) -> bool:
    """Whether so many numbers can be squares of the length of the sequences that some modules return."""
    shapes = [scene.result.tape.modules[module].output_shape for module in modules.tolist()]
    lengths = {max(shape[:-1]) for shape in shapes if len(shape) > 2}
    return any(length > 1 and elements % length**2 == 0 for length in lengths)


def _is_returned(scene: Scene, modules: Ints, size: int) -> bool:
    """Whether half of some bytes is as large as what some modules or those in them return, or as what a dropout or an
    index keeps of that: a byte, or up to eight, for each number.
    """
    every = scene.result.tape.modules
    inside = set(modules.tolist())
    for index, module in enumerate(every):  # a module comes before those in it
        if module.parent in inside:
            inside.add(index)
    elements = {
        int(np.prod(every[index].output_shape, dtype=np.int64)) for index in inside if every[index].output_shape
    }
    return any(size // 2 == width * each for width in (1, 2, 4, 8) for each in elements)


def _double(scene: Scene) -> Iterator[Advice]:
    """Models in float64, as numbers of NumPy make them. Assumes that all that they make is of as many bytes."""
    modules = [module for module in scene.result.tape.modules if module.parameters]
    if not modules or any(module.item_size != _DOUBLE or "Complex" in module.kind for module in modules):
        return
    made = np.isin(scene.category, [each for each in Category if each is not Category.WORKSPACE])
    yield Advice(
        saves=scene.saved(np.where(made, scene.block // 2, 0)),
        text="train in float32, if float64 is not meant: model.float(), and .float() for what comes from NumPy",
        is_cause=True,
    )


def _double_target(scene: Scene) -> Iterator[Advice]:
    """A target in float64, as numbers of NumPy make it, which takes the loss of a float32 output to float64. Assumes
    that what a loss makes of eight bytes for each number that the model returned, beside an input of as many bytes, is
    in float64; and that what is made right after it, or after a gradient of the loss, as large as it in float32, is a
    copy of it: the model is given one, and the gradient of its output is another. Wrong where a program works with
    complex numbers outside of its model.
    """
    tape, fates = scene.result.tape, scene.fates
    table = tape.allocations
    if not tape.modules or any(module.item_size == _DOUBLE or "Complex" in module.kind for module in tape.modules):
        return
    inputs = (scene.category == Category.INPUT) & scene.moment.alive
    loss = (fates.maker >= 0) & (table["module"] < 0) & (table["phase"] == Phase.FORWARD)
    for size in np.unique(table["requested"][inputs]).tolist():
        outputs = (table["requested"] * 2 == size) & (fates.maker >= 0) & (table["module"] >= 0)
        outputs &= table["requested"] == 4 * scene.of_output
        of_loss = loss & (table["requested"] == size) & np.isin(fates.maker, fates.maker[outputs])
        halves = loss & (table["requested"] * 2 == size)
        if size * _LARGE < scene.moment.breakdown.allocated or not of_loss.any() or halves.any():
            continue
        passing = (table["phase"] == Phase.BACKWARD) & (scene.category == Category.TEMPORARY) & (table["module"] < 0)
        rows = (table["requested"] == size) & (of_loss | passing | (table["phase"] == Phase.OUTSIDE))
        cast = rows & ~of_loss
        copies = np.append(False, cast[:-1]) & (table["requested"] * 2 == size) & (table["module"] < 0)
        yield Advice(
            saves=scene.saved(np.where(rows, scene.block // 2, np.where(copies, scene.block, 0))),
            text="make float32 of the target, if it is float64, as what comes from NumPy is (target.float()): it has "
            f"{format_size(size)}, twice as much as the model's output, and so has what the loss makes",
            is_cause=True,
        )
        return


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (_autocast, _cast_masks, _added_masks, _double, _double_target)
