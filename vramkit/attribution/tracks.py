"""Which lines of a program are told as one story. Knows when each began and ended what; not what any event was.

Nearly every program has one line, or several that take turns: a thread that loads and trains, one that runs a part of a
forward for another. What they do is one sequence. Two threads that train at the same time are two: what one does says
nothing of what the other's memory is for.
"""

from __future__ import annotations

from collections.abc import Sequence

from .recording import Kind, Mark

_BEGINS = frozenset({Kind.ROOT, Kind.BACKWARD, Kind.OPTIMIZER})
_ENDS = frozenset({Kind.ROOT_END, Kind.BACKWARD_END, Kind.OPTIMIZER_END})


def tracks_of(marks: Sequence[Mark]) -> dict[int, int]:
    """The track, from 0 on, that each line's marks are told on; lines that are in each other's way are on two.

    Two lines that both train are, wherever they do anything at the same time. One that only runs forwards is in the way
    of another's backward or optimizer step, and not of its forward: that is how a model is spread over threads. Wrong
    for a thread that evaluates a model, and is never in the way by chance.
    """
    lines = dict.fromkeys(line for _, _, line in marks)
    if len(lines) < 2:
        return dict.fromkeys(lines, 0)
    conflicts = _conflicts(marks)
    tracks: list[set[int]] = []
    found = {}
    for line in lines:
        number = next((i for i, track in enumerate(tracks) if not track & conflicts.get(line, set())), len(tracks))
        if number == len(tracks):
            tracks.append(set())
        tracks[number].add(line)
        found[line] = number
    return found


def _conflicts(marks: Sequence[Mark]) -> dict[int, set[int]]:
    """The lines that each line is in the way of."""
    trains = {line for kind, _, line in marks if kind in (Kind.BACKWARD, Kind.OPTIMIZER)}
    inside: dict[int, list[Kind]] = {}  # what each line has begun and not ended
    conflicts: dict[int, set[int]] = {}
    for kind, _, line in marks:
        if kind in _BEGINS:
            for other, kinds in inside.items():
                both_train = line in trains and other in trains
                if other != line and (both_train or {kind, *kinds} != {Kind.ROOT}):
                    conflicts.setdefault(line, set()).add(other)
                    conflicts.setdefault(other, set()).add(line)
            inside.setdefault(line, []).append(kind)
        elif kind in _ENDS and line in inside:
            inside[line].pop()
            if not inside[line]:
                del inside[line]
    return conflicts
