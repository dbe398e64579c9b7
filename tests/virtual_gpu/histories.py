"""Recorded allocator histories, and how a history of now is put into the same form. Knows no program."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent.parent / "recordings"


class Event(NamedTuple):
    """One thing that the allocator did."""

    action: str
    size: int
    """Bytes: as asked for, of the segment for ``segment_*``."""
    which: int
    """The how-manieth allocation of the history is freed here (or, for an allocation, this is); -1: an older one."""


def events(trace: Iterable[tuple[str, int, int]], *, segments: bool) -> list[Event]:
    """A trace of (action, size, address) without its addresses, which differ from machine to machine.

    Args:
        trace: in the order of time.
        segments: keep the segments' events too; they only compare where both histories start from nothing.
    """
    alive: dict[int, int] = {}
    found, count = [], 0
    for action, size, address in trace:
        if action == "alloc":
            alive[address] = count
            found.append(Event(action, size, count))
            count += 1
        elif action == "free_requested":
            found.append(Event(action, size, alive.pop(address, -1)))
        elif action.startswith("segment_") and segments:
            found.append(Event(action, size, -1))
    return found


def recorded(name: str, *, device: int = 0, segments: bool) -> list[Event]:
    """The history of a recording of a real GPU."""
    with gzip.open(FOLDER / f"{name}.json.gz", "rt") as file:
        trace = json.load(file)["device_traces"][device]
    return events(((action, size, address) for action, size, address, _ in trace), segments=segments)


Sizes = tuple[int, ...]
"""Bytes one after the other, negative where they are given back."""


def differences(theirs: list[Event], ours: list[Event]) -> Counter[tuple[Sizes, Sizes]]:
    """What one history has where the other has something else, and how often; no segments.

    Raises:
        AssertionError: events that are alike free different allocations.
    """
    sizes = [[event.size if event.action == "alloc" else -event.size for event in each] for each in (theirs, ours)]
    found: Counter[tuple[Sizes, Sizes]] = Counter()
    same: dict[int, int] = {-1: -1}
    for tag, first, last, begin, end in SequenceMatcher(None, *sizes, autojunk=False).get_opcodes():
        if tag != "equal":
            found[tuple(sizes[0][first:last]), tuple(sizes[1][begin:end])] += 1
            continue
        for their, our in zip(theirs[first:last], ours[begin:end], strict=True):
            if their.action == "alloc":
                same[their.which] = our.which
            assert same[their.which] == our.which, (their, our)
    return found


class Recorder:
    """Records what torch's allocator does inside a ``with``."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        import torch

        torch.cuda.init()
        torch.cuda.memory._record_memory_history(context=None, max_entries=10**6)
        try:
            yield
            self.entries = torch.cuda.memory._snapshot()["device_traces"][0]
        finally:
            torch.cuda.memory._record_memory_history(None)

    def events(self, *, segments: bool) -> list[Event]:
        """What was recorded."""
        return events(((e["action"], e["size"], e["addr"]) for e in self.entries), segments=segments)


def recorded_peak(name: str, *, device: int = 0) -> int:
    """The most bytes that were asked for and alive in a recording, counted back from what was there at its end."""
    with gzip.open(FOLDER / f"{name}.json.gz", "rt") as file:
        recording = json.load(file)
    blocks = [block for segment in recording["segments"] if segment["device"] == device for block in segment["blocks"]]
    peak = alive = sum(requested for _, _, requested, state in blocks if state.startswith("active"))
    for action, size, *_ in reversed(recording["device_traces"][device]):
        alive += {"alloc": -size, "free_completed": size}.get(action, 0)
        peak = max(peak, alive)
    return peak
