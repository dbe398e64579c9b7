"""Sizes that a program took from values that a virtual device had not computed: in which module, as notes.

Knows marks and what the virtual GPU was told of such reads; knows no events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ..attribution.recording import Kind, Mark
from ..tape.events import Module
from ..virtual_gpu import current
from ..virtual_gpu.values.hook import Read
from .marks import Marks

_OUTSIDE = (Kind.ROOT_END, Kind.BACKWARD, Kind.BACKWARD_END, Kind.OPTIMIZER, Kind.OPTIMIZER_END)


def reads_so_far() -> Counter[Read]:
    """What was read until now; to be subtracted afterwards."""
    handle = current()
    return Counter() if handle is None or handle.values is None else Counter(handle.values.reads)


def notes_of(reads: Counter[Read], marks: Marks, modules: Sequence[Module]) -> list[str]:
    """One note for all of them, the most frequent first; none where nothing was read.

    Args:
        reads: since the recording began.
        marks: of the recording.
        modules: that they speak of.
    """
    places: Counter[str] = Counter()
    lines = marks.lines.by_prefix()
    for read, times in reads.items():
        index = _module(read.mark, lines, marks.kept)
        where = f" in {modules[index].name}" if 0 <= index < len(modules) else ""
        places[read.operator.removeprefix("aten::") + where] += times
    if not places:
        return []
    told = [f"{place} ({times:,} x)" for place, times in places.most_common(3)]
    more = f" and {len(places) - 3:,} more" * (len(places) > 3)
    return [
        f"Sizes came from values that were not computed: {', '.join(told)}{more}. On a card they may be others; with "
        '`--values all` (values="all") everything that torch itself computes is computed.'
    ]


def _module(stamp: str, lines: Mapping[str, int], marks: Sequence[Mark]) -> int:
    """The module that a stamp speaks of, "prefix:module@number" or "prefix:number"; -1: none."""
    prefix, _, text = stamp.partition(":")
    if prefix not in lines:
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
