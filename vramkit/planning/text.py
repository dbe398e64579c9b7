"""A plan as text, and as a notebook shows it. Knows plans and sentences; works out no figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ..engines import EngineName
from ..gpus import GPU
from ..reports.layout import cut, note, sections, wrapped
from ..scaling.largest import MAX_PREDICTED_BATCH
from ..sizes import format_size
from .changes import LeftOut
from .variant import Variant

_HEADINGS = ("", "reserved", "allocated", "fits", "operations", "over PCIe", "effect", "largest", "change")
_MOST_UNFIT = 12
_CELL = "text-align:right;white-space:nowrap;padding:1px 8px"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What is shown of a plan; the fields are those of `Plan`."""

    gpu: GPU
    engine: EngineName
    batch_size: int
    variants: Sequence[Variant]
    cheapest: Variant | None
    closest: Variant
    front: Sequence[Variant]
    left_out: Sequence[LeftOut]
    notes: Sequence[str]
    versions: Mapping[str, str]

    def largest(self, each: Variant) -> str:
        """A variant's largest batch; "parts": it is of any size, in more parts; empty: it was not searched."""
        if not self.has_largest or (each.passes == 1 and each.largest_batch_size is None):
            return ""
        if each.largest_batch_size is None:
            return "parts"
        return "any" if each.largest_batch_size >= MAX_PREDICTED_BATCH else f"{each.largest_batch_size:,}"

    @property
    def has_largest(self) -> bool:
        """Whether the largest batch was searched of any variant."""
        return any(each.largest_batch_size is not None for each in self.variants)


def report(plan: Shown) -> str:
    """The whole text: at most 100 characters a line, but for code."""
    lines = [line for sentence in verdict(plan) for line in wrapped(sentence, "")]
    code = [] if plan.cheapest is None else [f"    {line}".rstrip() for line in plan.cheapest.code.splitlines()]
    left = [line for each in plan.left_out for line in wrapped(f"{each.name}: {each.reason}", "  ")]
    notes = [line for each in plan.notes for line in note(each)]
    return sections([[cut(_title(plan))], _table(plan), lines, code, ["Not tried:", *left] if left else [], notes])


def _title(plan: Shown) -> str:
    rows = f" with batch size {plan.batch_size}" if plan.batch_size else ""
    return f"vramkit: ways to fit {plan.gpu.product}{rows} ({plan.engine} engine)"


def _shown(plan: Shown) -> list[Variant]:
    """The program as it is, all that fit, and of the others the smallest."""
    fitting = [each for each in plan.variants[1:] if each.fits]
    return [plan.variants[0], *fitting, *[each for each in plan.variants[1:] if not each.fits][:_MOST_UNFIT]]


def _cells(plan: Shown, each: Variant) -> tuple[str, ...]:
    mark = ">" if each is plan.cheapest else "*" if each in plan.front else ""
    return (
        mark,
        format_size(each.peak_reserved),
        format_size(each.peak_allocated),
        "yes" if each.fits else "no",
        "-" if each.operations is None else f"x{each.operations:.2f}",
        "-" if each.transferred is None else format_size(each.transferred),
        each.effect,
        plan.largest(each),
    )


def _table(plan: Shown) -> list[str]:
    shown = _shown(plan)
    cells = [_cells(plan, each) for each in shown]
    columns = [
        number for number in range(len(_HEADINGS) - 1) if _HEADINGS[number] == "" or any(row[number] for row in cells)
    ]
    widths = [max(len(_HEADINGS[number]), *(len(row[number]) for row in cells)) for number in columns]

    def line(row: tuple[str, ...]) -> str:
        return " ".join(f"{row[number]:>{width}}" for number, width in zip(columns, widths, strict=True)) + "  "

    lines = [line(_HEADINGS) + _HEADINGS[-1]]
    for each, row in zip(shown, cells, strict=True):
        lines += wrapped(each.name, line(row))
    if len(shown) < len(plan.variants):
        lines.append(f"and {len(plan.variants) - len(shown)} more that do not fit")
    return lines


def verdict(plan: Shown) -> Iterator[str]:
    """What the plan came to, and how its costs are to be read: sentences, the answer first."""
    room = plan.gpu.memory - plan.gpu.context
    best = plan.cheapest
    if best is None:
        closest = plan.closest
        yield (
            f"Nothing that was run fits: {plan.gpu.product} has {format_size(room)} beside the CUDA context. The "
            f"closest reserves {format_size(closest.peak_reserved)}: {closest.name}."
        )
    elif best is plan.variants[0]:
        yield "The program fits as it is. The other rows are what single changes would do."
    else:
        yield f"> The least costly that fits: {best.name}."
        seen = {best.effect}
        for each in plan.variants[1:]:
            if each.fits and each.effect not in seen:
                seen.add(each.effect)
                yield f'The least costly with effect "{each.effect}": {each.name}.'
        for numbers in dict.fromkeys(best.numbers):
            if numbers != "none":
                yield f"Numerically: {numbers}."
    yield (
        "Costs: operations of a step by torch's flop counter, relative to the program as it is, bytes between host and "
        "device, and what the changes do to the training. How long a step takes is not known. * marks the Pareto "
        "front: no other row is as good or better in all of these and in memory. Rows without operations were not "
        "counted, and have no mark."
    )
    if plan.has_largest:
        yield (
            "Largest: the largest batch that runs on this card with the change, while the next larger one does not. "
            'Where nothing stands it was not searched, or some size did not run. "parts": more rows go in more parts.'
        )


def fragment(plan: Shown) -> str:
    """The table as a piece of HTML without scripts."""
    head = "".join(f'<th style="{_CELL}">{escape(each)}</th>' for each in _HEADINGS)
    rows = "".join(
        "<tr>"
        + "".join(f'<td style="{_CELL}">{escape(cell)}</td>' for cell in _cells(plan, each))
        + f'<td style="text-align:left;padding:1px 8px">{escape(each.name)}</td></tr>'
        for each in _shown(plan)
    )
    code = "" if plan.cheapest is None else f"<pre>{escape(plan.cheapest.code)}</pre>"
    sentences = [*verdict(plan), *(f"{each.name}: {each.reason}" for each in plan.left_out), *plan.notes]
    return (
        f'<div style="font-family:sans-serif;font-size:13px"><p><b>{escape(_title(plan))}</b></p>'
        f'<table style="font-variant-numeric:tabular-nums"><tr>{head}</tr>{rows}</table>{code}'
        + "".join(f"<p>{escape(each)}</p>" for each in sentences)
        + "</div>"
    )
