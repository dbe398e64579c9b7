"""A comparison as one screen of text. Knows what is shown in which order; the figures come from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Protocol

from ..errors import printable
from ..reports.layout import WIDTH, counted, cut, sections, wrapped
from ..reports.moment import phase_at
from ..reports.sentences import CATEGORY_NAMES, PHASE_NAMES, at_event, place, step_count
from ..reports.tree import shown_name
from ..sizes import format_size
from ..tape.breakdown import category_of
from ..tape.events import Category, Phase, Tape
from ..tape.memory import MemoryResult
from .reasons import label, signed
from .rows import Difference, ModuleDifference, StepDifference, TensorDifference

_ROWS = 8
_STEPS = 6
_FAR = 10.0  # times; the figures themselves say more than a percentage
_SINGULAR = {**{c: name.removesuffix("s") for c, name in CATEGORY_NAMES.items()}, Category.TEMPORARY: "temporary"}
_NOT_CATEGORIES = {
    "slack": "rounding and unsplit slack",
    "cached": "cached: held, not allocated",
    "graph_pools": "graph pools",
    "outside": "CUDA context, others",
}
_LEFT_OUT = ("cached", "graph_pools")  # they are of the peak of allocated memory, and reserved memory has another


class Compared(Protocol):
    """What a report reads of a comparison."""

    @property
    def device(self) -> str: ...
    @property
    def before(self) -> MemoryResult: ...
    @property
    def after(self) -> MemoryResult: ...
    @property
    def peak_allocated(self) -> Difference: ...
    @property
    def peak_reserved(self) -> Difference: ...
    @property
    def categories(self) -> Sequence[Difference]: ...
    @property
    def modules(self) -> Sequence[ModuleDifference]: ...
    @property
    def steps(self) -> Sequence[StepDifference]: ...
    @property
    def lines(self) -> Sequence[Difference]: ...
    @property
    def tensors(self) -> Sequence[TensorDifference]: ...
    @property
    def reasons(self) -> Sequence[str]: ...
    @property
    def others(self) -> Sequence[Compared]: ...


def report(comparison: Compared) -> str:
    """What grew or shrank, by category, and why; then by module, step, line of source and tensor.

    Returns:
        Lines of at most 100 characters, without a newline at the end. What did not change is left out.
    """
    parts = [
        [cut(f"vramkit: memory of {comparison.device}, before and after"), *_titles(comparison)],
        list(_categories(comparison)),
        [line for reason in comparison.reasons for line in wrapped(printable(reason), "* ")],
        list(_modules([row for row in comparison.modules if row.difference or any(p.difference for p in row.parts)])),
        list(_steps(comparison.steps)),
        list(_lines(comparison.lines)),
        list(_tensors(comparison)),
        [_other(each) for each in comparison.others],
    ]
    if parts[2]:
        parts[2].insert(0, "Why, as far as both recordings prove it:")
    if not any(parts[2:7]):
        parts[2] = ["At the peak, no module and no tensor changed."]
    return sections(parts)


def _titles(comparison: Compared) -> Iterator[str]:
    for word, result in (("before:", comparison.before), ("after:", comparison.after)):
        yield from wrapped(subject(result), f"  {word:8}")


def subject(result: MemoryResult) -> str:
    """What was recorded, in a line: "profile of Tesla T4, 3 steps, peak in the backward, step 2, torch 2.14.1"."""
    facts = [
        f"{_kind(result)} of {cut(result.device_name or result.device, 60)}",
        *([counted(step_count(result), "step")] if result.tape.knows_phases else []),
        "one moment" if result.is_moment else f"peak {_peak_place(result)}",
        *(["begins in the middle"] if result.is_window and not result.is_moment else []),
        *([cut(f"torch {result.versions['torch']}", 60)] if "torch" in result.versions else []),
    ]
    if not len(result.tape.events) and not len(result.tape.allocations):
        facts = ["not used"]
    return printable(", ".join(facts))


def _kind(result: MemoryResult) -> str:
    return type(result).__name__.lower() if result.tape.knows_phases else "snapshot"


def _peak_place(result: MemoryResult) -> str:
    event = result.tape.peak_event
    if event < 0:
        return "before the first event"
    if not result.tape.knows_phases:
        return at_event(result, event, phase_at(result.tape, event))
    row = result.tape.events[event]
    return f"{place(Phase(int(row['phase'])))}, step {int(row['step']) + 1}"


# -- the sum -----------------------------------------------------------------------------------------------------------


def _categories(comparison: Compared) -> Iterator[str]:
    yield f"At the peak of allocated memory:{'before':>10}{'after':>14}{'difference':>14}"
    for row in sorted(comparison.categories, key=lambda row: -abs(row.difference)):
        if (row.before or row.after) and row.name not in (*_LEFT_OUT, "outside"):
            yield _line("", words(row.name), row)
    yield _line("=", "allocated", comparison.peak_allocated)
    yield _line("=", "reserved, at its own peak", comparison.peak_reserved)
    outside = next(row for row in comparison.categories if row.name == "outside")
    if outside.difference:
        yield _line("+", words("outside"), outside)


def _line(sign: str, name: str, row: Difference) -> str:
    if not row.difference:
        change = f"{'=':>14}"
    else:
        grew = row.difference / row.before if row.before else 0.0
        part = f"{'new' if not row.before else '>+999%' if grew >= _FAR else f'{grew:+.1%}':>9}"
        change = f"{signed(row.difference):>14}{part}{row.difference:>+18,} B"
    return f"  {sign:1} {name:<27}{format_size(row.before):>12}{format_size(row.after):>14}{change}"


def words(name: str) -> str:
    """What a part of the `Breakdown` is called in reports."""
    return _NOT_CATEGORIES.get(name) or CATEGORY_NAMES[category_of("The name of a category was asked for", name)]


# -- modules, steps, lines, tensors ------------------------------------------------------------------------------------


def _modules(rows: Sequence[ModuleDifference]) -> Iterator[str]:
    if not any(row.name for row in rows):
        return
    yield "Modules that changed most (each row is the sum of the four parts that follow):"
    yield "   difference parameters grads+state activations temp.+other  module"
    for row in rows:
        first, *others = row.parts
        head = f"{signed(row.difference):>13}{_cell(first, 11)}" + "".join(_cell(each, 12) for each in others) + "  "
        yield head + _module_label(row, WIDTH - len(head))


def _module_label(row: ModuleDifference, width: int) -> str:
    if not row.name:
        return "(no module, or a smaller one)"
    name = label(row)
    short = shown_name(name, width)
    kind = f" ({printable(row.kind)})"
    return name + kind if len(name) + len(kind) <= width else short


def _cell(part: Difference, width: int) -> str:
    return f"{signed(part.difference) if part.difference else '-':>{width}}"


def _steps(steps: Sequence[StepDifference]) -> Iterator[str]:
    changed = [step for step in steps if step.peak_allocated.difference or step.peak_reserved.difference]
    if not changed or len(steps) < 2:
        return
    yield "Steps whose peak changed:       allocated                            reserved"
    alike = [(step, [*same]) for step, same in groupby(changed, lambda each: (each.peak_allocated, each.peak_reserved))]
    for figures, same in alike[:_STEPS]:
        first, last = same[0].step + 1, same[-1].step + 1
        name = f"step {first}" if first == last else f"steps {first} to {last}"
        yield (f"  {name:<15}" + "".join(map(_change, figures))).rstrip()
    if len(alike) > _STEPS:
        yield f"  and {sum(len(same) for _, same in alike[_STEPS:]):,} more of {len(steps):,}"


def _change(row: Difference) -> str:
    return f"{format_size(row.before):>10} ->{format_size(row.after):>11} {f'({signed(row.difference)})':<16}"


def _lines(lines: Sequence[Difference]) -> Iterator[str]:
    if not lines:
        return
    yield "Lines that hold more or less at the peak:"
    for row in lines[:_ROWS]:
        head = f"{signed(row.difference):>13}  "
        yield head + shown_name(row.name, WIDTH - len(head))
    if len(lines) > _ROWS:
        yield f"  and {len(lines) - _ROWS:,} more"


def _nowhere(row: TensorDifference, tapes: Sequence[Tape]) -> str:
    """What is said of a tensor without a name, a module and a line."""
    if all(tape.knows_phases for tape in tapes):
        return "in no module"
    if row.category is Category.WORKSPACE:
        return "kept by cuBLAS"
    if len({tape.stacks is None for tape in tapes}) > 1:
        return ""  # lines of one side only are not matched
    return "no line is known"


def _tensors(comparison: Compared) -> Iterator[str]:
    rows, tapes = comparison.tensors, (comparison.before.tape, comparison.after.tape)
    if not rows:
        return
    yield "Tensors that came, went, or have another size:"
    for row in rows[:_ROWS]:
        before, after = (
            _many(*each) for each in ((row.count_before, row.size_before), (row.count_after, row.size_after))
        )
        sizes = f"{before} -> {after}" if before and after else f"+ {after}" if after else f"- {before}"
        head = f"{signed(row.difference):>13}  {sizes:<32} {_SINGULAR[row.category]:<16} "
        said = row.phase is not Phase.OUTSIDE or all(tape.knows_phases for tape in tapes)
        tail = f" ({PHASE_NAMES[row.phase]})" if said and not (row.named or (row.line and not row.name)) else ""
        below = [each for each in (row.line, f"by {row.operator}" if row.operator else "") if each]
        if not row.name and row.line:
            yield head + cut(below.pop(0), WIDTH - len(head))
        else:
            name = row.name or _nowhere(row, tapes)
            yield (head + shown_name(name, WIDTH - len(head) - len(tail)) + tail).rstrip()
        for each in below:
            yield " " * len(head) + cut(each, WIDTH - len(head))
    if len(rows) > _ROWS:
        yield f"  and {len(rows) - _ROWS:,} more"


def _many(count: int, size: int) -> str:
    return f"{count} x {format_size(size)}" if count > 1 else format_size(size) * bool(count)


def _other(comparison: Compared) -> str:
    allocated, reserved = comparison.peak_allocated, comparison.peak_reserved
    return cut(
        f"Also {comparison.device}: allocated {format_size(allocated.before)} -> {format_size(allocated.after)} "
        f"({signed(allocated.difference)}), reserved {format_size(reserved.before)} -> {format_size(reserved.after)} "
        f"({signed(reserved.difference)})"
    )
