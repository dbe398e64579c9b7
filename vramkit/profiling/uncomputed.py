"""What a program took from values that a virtual device had not computed: by which operator, in which module, as notes.

Knows marks, what the virtual GPU was told of such reads, and which optimizer goes by its loss; knows no events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import torch

from ..attribution.recording import Kind, Mark
from ..sizes import format_size
from ..tape.events import Module
from ..virtual_gpu.values.hook import Read
from .marks import Marks

_ITEM = "aten::_local_scalar_dense"
_REMEDY = '; with `--values all` (values="all") everything that torch itself computes is computed.'
_OUTSIDE = (Kind.ROOT_END, Kind.BACKWARD, Kind.BACKWARD_END, Kind.OPTIMIZER, Kind.OPTIMIZER_END)


def of_reads(reads: Counter[Read], marks: Marks, modules: Sequence[Module]) -> list[str]:
    """A note of the sizes, and one of the whole numbers that may become some; none where nothing was read.

    Args:
        reads: since the recording began.
        marks: of the recording.
        modules: that they speak of.
    """
    sizes = _told(Counter({each: times for each, times in reads.items() if each.operator != _ITEM}), marks, modules)
    numbers = _told(Counter({each: times for each, times in reads.items() if each.operator == _ITEM}), marks, modules)
    notes = []
    if sizes:
        notes.append(f"Sizes came from values that were not computed: {sizes}. On a card they may be others{_REMEDY}")
    if numbers:
        notes.append(
            f"Whole numbers that were not computed were read, as 0: {numbers}. A size that the program makes of them "
            f"may be another on a card{_REMEDY}"
        )
    return notes


def of_choices(spread: Counter[Read], marks: Marks, modules: Sequence[Module]) -> list[str]:
    """One note for all sizes that came of choices that were spread evenly; arguments as for `of_reads`."""
    told = _told(spread, marks, modules)
    if not told:
        return []
    return [
        f"Assumed: choices by values that were not computed (a router's expert, a next token) are even; sizes came of "
        f'them: {told}. On a card some are larger; with `--values all` (values="all") the weights choose.'
    ]


def of_searches(optimizers: Collection[torch.optim.Optimizer], largest: int) -> list[str]:
    """A note for each LBFGS on a device: what it would have kept of the steps that a loss decides on.

    Args:
        optimizers: that are there.
        largest: bytes of the largest tensor of numbers that was computed.
    """
    notes = []
    for each in optimizers:
        if isinstance(each, torch.optim.LBFGS):
            [group] = each.param_groups
            trained = [one for one in group["params"] if one.requires_grad and one.is_cuda]
            pair = 2 * sum(one.numel() * one.element_size() for one in trained)
            if pair > 2 * largest:
                notes.append(
                    f"LBFGS goes on as long as its loss falls, which was not computed: here it ends early, and keeps "
                    f"nothing of its steps. On a card it comes to keep {group['history_size']:,} pairs of a step and a "
                    f"gradient, {format_size(pair)} ({pair:,} B) each (history_size){_REMEDY}"
                )
    return notes


def _told(reads: Counter[Read], marks: Marks, modules: Sequence[Module]) -> str:
    places: Counter[str] = Counter()
    lines = marks.lines.by_prefix()
    for read, times in reads.items():
        index = _module(read.mark, lines, marks.kept)
        where = f" in {modules[index].name}" if 0 <= index < len(modules) else ""
        places[("item()" if read.operator == _ITEM else read.operator.removeprefix("aten::")) + where] += times
    told = [f"{place} ({times:,} x)" for place, times in places.most_common(3)]
    return ", ".join(told) + f" and {len(places) - 3:,} more" * (len(places) > 3)


def _module(stamp: str, lines: Mapping[str, int], marks: Sequence[Mark]) -> int:
    """The module that a stamp speaks of, "prefix:module@number" or "prefix:number"; -1: none, or no stamps."""
    prefix, _, text = stamp.partition(":")
    if prefix not in lines or not text:
        return -1
    module, _, number = text.rpartition("@")
    if module:
        return int(module)
    for kind, value, line in reversed(marks[: int(number)]):
        if line == lines[prefix] and kind in (Kind.IN, Kind.ROOT):
            return value
        if line == lines[prefix] and kind in _OUTSIDE:
            return -1
    return -1
