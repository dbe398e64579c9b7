"""Whether a result is over a limit, or has grown since another one, in words that name who holds it. Opens no files."""

from __future__ import annotations

from collections.abc import Iterator

from ..comparison.modules import changed_modules
from ..comparison.pair import Pair
from ..comparison.reasons import PART_NAMES, label, signed
from ..comparison.result import Comparison, compare, is_over
from ..comparison.rows import ModuleDifference, TensorDifference
from ..comparison.segments import first_other, taken_for
from ..comparison.tensors import changed_lines, changed_tensors
from ..reports.modules import PARTS, ModuleRow, module_rows
from ..reports.moment import moment_of
from ..reports.sentences import CATEGORY_NAMES, place
from ..results.profile import Profile
from ..sizes import format_size, parse_size

TOLERANCE = "1%"
"""By how much a peak may grow unless something else is said."""

_MODULES = 8  # among which the one that grew most is looked for


def over_limit(result: Profile, limit: str | int) -> str:
    """What to say of a result that reserved more than a limit on one of its devices; empty: it did not.

    Args:
        result: of all its devices.
        limit: bytes, or a size such as ``"11 GiB"``, for ``peak_reserved``: without the CUDA context.

    Raises:
        UsageError: the limit is no size.
    """
    size = parse_size(limit)
    fullest = max(result.each_device(), key=lambda each: each.peak_reserved)
    if fullest.peak_reserved <= size:
        return ""
    head = (
        f"GPU memory is over its limit: at most {format_size(fullest.peak_reserved)} were reserved on "
        f"{fullest.device_name or fullest.device}, {format_size(fullest.peak_reserved - size)} more than "
        f"{format_size(size)}."
    )
    rows = [row for row in module_rows(fullest, moment_of(fullest)) if row.name]
    first = "\n\n".join(fullest.report().split("\n\n")[:2])
    return "\n".join([head, *[f"{_holder(rows[0])}\n" if rows else "", first]])


def _holder(row: ModuleRow) -> str:
    parts = dict(zip(PARTS, (row.parameters, row.kept, row.activations, row.rest), strict=True))
    most = max(parts, key=lambda name: parts[name])
    times = f"{row.count} x " * (row.count > 1)
    return (
        f"Most is held by {times}{row.name}{' itself' * row.own} ({row.kind}): {format_size(row.holds)} at the peak, "
        f"{format_size(parts[most])} of it {PART_NAMES[most]}."
    )


def grown(before: Profile, after: Profile, tolerance: str | int) -> str:
    """What to say of a result whose peak grew by more than a tolerance; empty: it did not.

    Args:
        before: the baseline.
        after: what is judged.
        tolerance: as of `Comparison.exceeds`.

    Raises:
        UsageError: the tolerance is none.
    """
    comparison = compare(before, after)
    if not comparison.exceeds(tolerance):
        return ""
    most = max(comparison.each_device(), key=_growth)
    return "\n".join([_head(most, tolerance), *_named(most, tolerance), "", comparison.report()])


def _growth(comparison: Comparison) -> int:
    return max(comparison.peak_allocated.difference, comparison.peak_reserved.difference)


def _head(comparison: Comparison, tolerance: str | int) -> str:
    figures = [
        f"{word} {format_size(each.before)} -> {format_size(each.after)} ({signed(each.difference)})"
        for word, each in (("allocated", comparison.peak_allocated), ("reserved", comparison.peak_reserved))
    ]
    limit = tolerance if isinstance(tolerance, str) else format_size(tolerance)
    return f"GPU memory grew by more than {limit} since the baseline: at most {', '.join(figures)}."


def _named(comparison: Comparison, tolerance: str | int) -> Iterator[str]:
    """Who has more than before at the place of the new peak: a module, a tensor, a line; of segments, who asked."""
    pair = Pair(comparison.before, comparison.after)
    allocated = comparison.peak_allocated
    if not is_over(allocated, tolerance):
        more = f"Only {format_size(allocated.difference)}" if allocated.difference > 0 else "No"
        yield f"{more} more is allocated at the peak: the same takes more segments, or larger ones."
        yield from (f"  taken:  {sentence}" for sentence in taken_for(pair))
        yield f"  asked:  {first_other(pair)}"
    if allocated.difference <= 0:
        return
    pair = pair.at_the_same_place()
    rows = [row for _, row in changed_modules(pair, _MODULES)]
    modules = [row for row in rows if row.name and row.difference > 0]
    tensors = [row for row in changed_tensors(pair) if row.difference > 0]
    lines = [row for row in changed_lines(pair) if row.difference > 0]
    if modules:
        yield f"  module: {_module(max(modules, key=lambda row: row.difference))}"
    if tensors:
        yield f"  tensor: {_tensor(tensors[0])}"
    if lines:
        yield f"  line:   {signed(lines[0].difference)} by {lines[0].name}"


def _module(row: ModuleDifference) -> str:
    part = max(row.parts, key=lambda each: each.difference)
    return f"{signed(row.difference)} in {label(row)} ({row.kind}), most of it {PART_NAMES[part.name]}"


def _tensor(row: TensorDifference) -> str:
    times = f"{row.count_after} x " * (row.count_after > 1)
    was = f", and were {row.count_before} x {format_size(row.size_before)}" if row.count_before else ""
    what = f"{times}{format_size(row.size_after)} {CATEGORY_NAMES[row.category]}"
    if row.named:
        return f"{signed(row.difference)}: {what}, {row.name}{was}"
    where = f" of {row.name}" * bool(row.name)
    by = f" by {row.operator}" * bool(row.operator) + f" at {row.line}" * bool(row.line)
    return f"{signed(row.difference)}: {what}{where}, made {place(row.phase)}{by}{was}"
