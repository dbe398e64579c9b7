"""Interrupts at every line: what Ctrl-C or a lack of memory may do to code, in an order that repeats itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

Place = tuple[str, int]
"""A file and a line in it."""


def lines_of(run: Callable[[], object], folder: Path) -> dict[Place, int]:
    """How often each line of a folder's files runs."""
    counts: dict[Place, int] = {}

    def count(place: Place) -> None:
        counts[place] = counts.get(place, 0) + 1

    _traced(run, folder, count)
    return counts


def interrupt(run: Callable[[], object], folder: Path, place: Place, turn: int, error: type[BaseException]) -> None:
    """Run something, and raise an error just before a line of a folder's files runs for the given time, from 1 on."""
    left = turn

    def strike(at: Place) -> None:
        nonlocal left
        if at == place:
            left -= 1
            if not left:
                raise error(f"before {Path(place[0]).name}:{place[1]}, turn {turn}")

    _traced(run, folder, strike)


def first_and_last(counts: dict[Place, int]) -> Iterator[tuple[Place, int]]:
    """Each place with the number of its first turn, and of its last where it has several."""
    for place, count in counts.items():
        for turn in sorted({1, count}):
            yield place, turn


def _traced(run: Callable[[], object], folder: Path, at_line: Callable[[Place], None]) -> None:
    start = f"{folder}/"
    ours: dict[str, bool] = {}

    def on_line(frame: FrameType, event: str, arg: object) -> Any:
        if event == "line":
            at_line((frame.f_code.co_filename, frame.f_lineno))
        return on_line

    def on_call(frame: FrameType, event: str, arg: object) -> Any:
        name = frame.f_code.co_filename
        if name not in ours:
            ours[name] = name.startswith(start)
        return on_line if ours[name] else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        run()
    finally:
        sys.settrace(before)
