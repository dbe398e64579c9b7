"""Which threads' marks are told as one story."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramkit.attribution.recording import Kind, Mark
from vramkit.attribution.tracks import tracks_of

ENDS = {Kind.ROOT: Kind.ROOT_END, Kind.BACKWARD: Kind.BACKWARD_END, Kind.OPTIMIZER: Kind.OPTIMIZER_END}


def marks_of(story: str) -> list[Mark]:
    """``"F0 B1 /1 /0"``: line 0 begins a forward, line 1 a backward and ends it, line 0 ends its forward."""
    kinds = {"F": Kind.ROOT, "B": Kind.BACKWARD, "O": Kind.OPTIMIZER}
    inside: dict[int, list[Kind]] = {}
    marks = []
    for word in story.split():
        line = int(word[1:])
        if word[0] == "/":
            marks.append((ENDS[inside[line].pop()], 0, line))
        else:
            inside.setdefault(line, []).append(kinds[word[0]])
            marks.append((kinds[word[0]], 0, line))
    return marks


@pytest.mark.parametrize(
    ("story", "tracks"),
    [
        ("", {}),
        ("F0 /0 B0 /0 O0 /0", {0: 0}),
        ("F0 /0 B1 /1 O0 /0 F1 /1", {0: 0, 1: 0}),  # they take turns
        ("F0 F1 /0 /1 B0 /0", {0: 0, 1: 0}),  # a forward over two threads, and one backward
        ("F0 F1 /0 /1 B0 /0 B1 /1", {0: 0, 1: 1}),  # two that train
        ("F0 /0 B0 F1 /1 /0", {0: 0, 1: 1}),  # one that evaluates while the other's backward runs
        ("F1 O0 /0 /1 F2 /2", {1: 0, 0: 1, 2: 0}),
        ("B0 B1 /1 /0 B1 B2 /2 /1", {0: 0, 1: 1, 2: 0}),
        ("B0 B1 B2 /0 /1 /2", {0: 0, 1: 1, 2: 2}),
        ("O0 F0 /0 B0 /0 /0", {0: 0}),  # a closure
        ("O0 F1 /1", {0: 0, 1: 1}),  # a step that never ended
    ],
)
def test_lines_that_are_in_each_others_way_are_told_apart(story: str, tracks: dict[int, int]) -> None:
    assert tracks_of(marks_of(story)) == tracks


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([*ENDS, *ENDS.values(), Kind.SCAN]))))
def test_two_that_train_at_once_are_never_on_one_track(steps: list[tuple[int, Kind]]) -> None:
    marks = [(kind, 0, line) for line, kind in steps]

    tracks = tracks_of(marks)

    trains = {line for kind, _, line in marks if kind in (Kind.BACKWARD, Kind.OPTIMIZER)}
    depth = dict.fromkeys(range(4), 0)
    for kind, _, line in marks:
        if kind in ENDS:
            depth[line] += 1
            inside = [tracks[each] for each in trains if depth[each]]
            assert line not in trains or len(inside) == len(set(inside))
        elif kind in ENDS.values():
            depth[line] = max(depth[line] - 1, 0)
    assert set(tracks) == {line for _, _, line in marks}
