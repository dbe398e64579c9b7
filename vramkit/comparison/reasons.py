"""Why memory changed, in sentences: only what both tapes prove. Knows pairs and rows; lays nothing out.

A sentence states what is seen on the tapes (a shape, a class, another operator, tensors that came, a recomputation that
is gone), not what somebody may have changed in the program.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import printable
from ..reports.modules import PARTS, part_of_category
from ..reports.moment import moment_of
from ..reports.sentences import CATEGORY_NAMES, place
from ..sizes import format_size
from ..tape.events import Category
from .modules import Changed, changed_modules, members_inside
from .operators import attention_kernel, forward_operators
from .pair import Pair, Side
from .rows import ModuleDifference

PART_NAMES = {
    "parameters": "parameters",
    "kept": "gradients and optimizer state",
    "activations": "activations",
    "rest": "temporaries and other",
}
_WORTH = 100  # a change is explained if it is at least one part in so many of the larger peak
_MAX_MODULES = 3
_WIDTHS = (1, 2, 4, 8)  # bytes of a number
_FIRST = 2  # of the steps that are compared with the one before
_STEPS = 4  # without the first and the last: so many it takes to see growth


def signed(size: int) -> str:
    """A difference of bytes: ``"+512.0 MiB"``."""
    return f"{'+' * (size > 0)}{format_size(size)}"


def label(row: ModuleDifference) -> str:
    """What a row of modules is called: ``"24 x GPT.h.*.attn"``."""
    count = max(row.count_before, row.count_after)
    return f"{count} x " * (count > 1) + row.name + " itself" * row.own


def reasons(pair: Pair) -> Iterator[str]:
    """Sentences, the ones about the whole program first, then of the few modules that cover most of the change."""
    worth = max(1, max(side.result.peak_allocated for side in pair.sides) // _WORTH)
    yield from _failures(pair)
    yield from _beginnings(pair)
    yield from _versions(pair)
    yield from _settings(pair)
    yield from _moved(pair, worth)
    yield from _inputs(pair)
    yield from _states(pair, worth)
    for changed, row in changed_modules(pair, _MAX_MODULES):
        if changed.size >= worth:
            yield from _module(pair, changed, row, worth)
    yield from _growth(pair)


def _failures(pair: Pair) -> Iterator[str]:
    for side, word in zip(pair.sides, ("Before", "After"), strict=True):
        if failed := moment_of(side.result).failed:
            where = f" {place(failed.phase, failed.module)}" if side.result.tape.knows_phases else ""
            yield (
                f"{word}, an allocation of {format_size(failed.requested)} failed{where}, and that was the end: "
                f"this peak is only as high as the memory let it be."
            )


def _beginnings(pair: Pair) -> Iterator[str]:
    """Histories that lack their beginning."""
    for side, word in zip(pair.sides, ("Before", "After"), strict=True):
        if side.result.is_moment:
            yield f"{word}, one moment is known and no history: what was highest is not known."
        elif side.result.is_window:
            yield f"{word}, the history begins in the middle: the peak is the highest in what was kept."


def _versions(pair: Pair) -> Iterator[str]:
    before, after = (side.result.versions.get("torch") for side in pair.sides)
    if before and after and before != after:
        yield f"torch was {printable(before)} before, and is {printable(after)}."


def _settings(pair: Pair) -> Iterator[str]:
    before, after = (side.result.tape.alloc_conf or "not set" for side in pair.sides)
    if before != after:
        yield f"The allocator's settings (PYTORCH_CUDA_ALLOC_CONF) were {before} before, and are {after}."


def _moved(pair: Pair, worth: int) -> Iterator[str]:
    """The peak is in another phase, where other things are alive, though there are no more of them at any time."""
    before, after = pair.sides
    if before.peak_phase is after.peak_phase or not all(side.result.tape.knows_phases for side in pair.sides):
        return
    yield f"The peak is {place(after.peak_phase)} now, and was {place(before.peak_phase)}."
    highest = [side.result.timeline.by_category.max(axis=0) for side in pair.sides]
    for category in Category:
        here = after.result.peak.of(category) - before.result.peak.of(category)
        if abs(here) >= worth and highest[0][category] == highest[1][category]:
            yield (
                f"{signed(here)} {CATEGORY_NAMES[category]} at the peak is for this alone: at their highest they are "
                f"{format_size(int(highest[0][category]))} in both."
            )


def _inputs(pair: Pair) -> Iterator[str]:
    """As many inputs, all larger or smaller by the same factor."""
    tables = (side.alive[side.alive["category"] == Category.INPUT] for side in pair.sides)
    before, after = (Counter(table["requested"].tolist()) for table in tables)
    ratio = _same_ratio(before, after)
    if ratio not in (None, 1.0):
        yield f"Inputs are {ratio:.4g} times as large."


def _same_ratio(before: Counter[int], after: Counter[int]) -> float | None:
    """By which factor all of some tensors grew; None: not all by one, or they are not as many."""
    left, right = sorted(before.items()), sorted(after.items())
    if not left or [count for _, count in left] != [count for _, count in right]:
        return None
    ratios = {larger / size for (size, _), (larger, _) in zip(left, right, strict=True) if size}
    return ratios.pop() if len(ratios) == 1 else None


def _states(pair: Pair, worth: int) -> Iterator[str]:
    """Optimizers that keep something else; not of a result that doesn't say what memory is for."""
    tables = [side.result.tape.allocations for side in pair.sides]
    change = pair.after.result.peak.optimizer_state - pair.before.result.peak.optimizer_state
    if abs(change) < worth or not all((table["category"] == Category.PARAMETER).any() for table in tables):
        return
    before, after = (_kinds_of_state(side) for side in pair.sides)
    if before != after:
        yield f"Optimizers keep {_listed(after)} of a parameter now, and kept {_listed(before)}."


def _kinds_of_state(side: Side) -> list[str]:
    """``exp_avg`` and others: whatever was kept at any time, under a name."""
    names, table = side.result.tape.names, side.result.tape.allocations
    table = table[(table["category"] == Category.OPTIMIZER_STATE) & (table["name"] >= 0)]
    found = {names[index].rpartition(" of ")[0] for index in np.unique(table["name"]).tolist()}
    return sorted(found - {""})


def _listed(names: Sequence[str]) -> str:
    shown = names[:4]
    return ", ".join(shown) + ", ..." * (len(names) > len(shown)) or "nothing"


def _module(pair: Pair, changed: Changed, row: ModuleDifference, worth: int) -> Iterator[str]:
    parts = sorted(
        (part for part in row.parts if abs(part.difference) >= worth), key=lambda part: -abs(part.difference)
    )
    if not parts:
        return
    facts = [*_presence(row), *_classes(pair, changed), *_shapes(pair, changed), *_recomputation(pair, changed)]
    if parts[0].name in ("activations", "rest"):
        facts += _operators(pair, changed)
    if row.count_before == row.count_after and parts[0].name != "kept":  # of states their kinds say more
        facts += _tensors(pair, changed, parts[0].name)
    if facts:
        what = ", ".join(f"{signed(part.difference)} {PART_NAMES[part.name]}" for part in parts)
        yield f"{what} in {label(row)}: {'; '.join(facts)}."


def _presence(row: ModuleDifference) -> Iterator[str]:
    if not row.count_before or not row.count_after:
        yield "there was none before" if row.count_after else "it is gone"
    elif row.count_before != row.count_after:
        yield f"{row.count_after} modules, and there were {row.count_before}"


def _classes(pair: Pair, changed: Changed) -> Iterator[str]:
    found = []
    for side in pair.sides:
        modules = zip(side.place.tolist(), side.result.tape.modules, strict=True)
        members = {*changed.node.members}
        found.append({module.kind for at, module in modules if at in members})
    before, after = found
    if len(before) == len(after) == 1 and before != after:
        yield f"its class is {after.pop()}, and was {before.pop()}"


def _shapes(pair: Pair, changed: Changed) -> Iterator[str]:
    before, after = (_shape(side, changed) for side in pair.sides)
    if before and after and before != after:
        yield f"it returns {'x'.join(map(str, after))}, and returned {'x'.join(map(str, before))}"


def _shape(side: Side, changed: Changed) -> tuple[int, ...]:
    """What all of a row's modules return; empty where they differ."""
    shapes = {side.shapes[place] for place in changed.node.members if place in side.shapes}
    return shapes.pop() if len(shapes) == 1 else ()


def _operators(pair: Pair, changed: Changed) -> Iterator[str]:
    """Another kernel of attention, or other operators, in the forward."""
    before, after = (forward_operators(side, _places(changed)) for side in pair.sides)
    if not before or not after:
        return
    kernels = [attention_kernel(before), attention_kernel(after)]
    if all(kernels) and kernels[0] != kernels[1]:
        yield f"its attention kernel is {kernels[1]}, and was {kernels[0]}"
        return
    came, went = [name for name in after if name not in before], [name for name in before if name not in after]
    if came and went:
        yield f"its forward runs {_listed(came)} now, and ran {_listed(went)}"
    elif came:
        yield f"its forward runs {_listed(came)} now, and did not"
    elif went:
        yield f"its forward no longer runs {_listed(went)}"


def _places(changed: Changed) -> list[int]:
    """Of a row's modules, with those inside them where they belong to it."""
    return changed.node.members if changed.only_own else members_inside(changed.node)


def _recomputation(pair: Pair, changed: Changed) -> Iterator[str]:
    inside = members_inside(changed.node)
    before, after = (bool(np.isin(inside, side.recomputed).any()) for side in pair.sides)
    if before != after:
        yield (
            "its forward is run again in the backward, and was not"
            if after
            else ("its forward was run again in the backward, and no longer is")
        )


def _tensors(pair: Pair, changed: Changed, part: str) -> Iterator[str]:
    """The same tensors with other sizes, or which ones came and went."""
    counts = [_sizes(side, changed, part) for side in pair.sides]
    went, came = counts[0] - counts[1], counts[1] - counts[0]
    ratio = _same_ratio(went, came)
    if ratio is not None:
        count = sum(went.values())
        head = "1 tensor is" if count == 1 else f"{count:,} tensors are"
        wider = _wider(pair, changed, went, came, ratio) if part == "activations" else ""
        yield f"{head} {ratio:.4g} times as large{wider}"
        return
    words = [f"{_sized(tensors)} {word}" for tensors, word in ((came, "came"), (went, "went")) if tensors]
    if words:
        yield ", ".join(words)


def _wider(pair: Pair, changed: Changed, went: Counter[int], came: Counter[int], ratio: float) -> str:
    """Whether what the modules return has the same shape, and could have wider or narrower numbers.

    That it has is not proved: the tensor may be another one, within the module, that only has as many bytes.
    """
    shapes = [_shape(side, changed) for side in pair.sides]
    numbers = math.prod(shapes[0])
    if not shapes[0] or shapes[0] != shapes[1]:
        return ""
    for width in _WIDTHS:
        if width * ratio in _WIDTHS and width * numbers in went and width * numbers * ratio in came:
            return (
                f", and what it returns has the same shape: numbers of {width * ratio:.0f} B in place of {width} B "
                f"would do that"
            )
    return ""


def _sizes(side: Side, changed: Changed, part: str) -> Counter[int]:
    chosen = np.isin(side.owner, _places(changed)) & (part_of_category()[side.alive["category"]] == PARTS.index(part))
    return Counter(side.alive["requested"][chosen].tolist())


def _sized(tensors: Counter[int]) -> str:
    largest = sorted(tensors.items(), key=lambda each: -each[0] * each[1])
    shown = [f"{count} x {format_size(size)}" if count > 1 else format_size(size) for size, count in largest[:2]]
    return " and ".join(shown) + " and more" * (len(largest) > 2)


def _growth(pair: Pair) -> Iterator[str]:
    """Memory that grows with every step, and did not."""
    before, after = (_grows_by(side) for side in pair.sides)
    if after and before == 0:
        yield f"Every step from the third on now ends with more than the one before, by {format_size(after)} or more."
        yield from _left_behind(pair.after)


def _left_behind(side: Side) -> Iterator[str]:
    """The line that made most of what these steps leave until the end; nothing where no line is known."""
    tape = side.result.tape
    table = tape.allocations
    rows = (
        (table["died"] < 0)
        & (table["born"] >= 0)
        & (table["step"] >= _FIRST)
        & (table["step"] < len(side.result.steps) - 1)
    )
    sums: Counter[str] = Counter()
    for row in np.flatnonzero(rows).tolist():
        if line := tape.lines[row]:
            sums[line] += int(table["requested"][row])
    for line, size in sums.most_common(1):
        yield f"Of what they leave until the end, {format_size(size)} were made by {line}."


def _grows_by(side: Side) -> int | None:
    """By how much each step's end is higher than that of the one before, at least; None: of so few nobody can say."""
    ends = [step.end_allocated for step in side.result.steps[1:-1]]  # the first makes states, the last may not be whole
    return max(0, min(np.diff(ends).tolist())) if len(ends) >= _STEPS else None
