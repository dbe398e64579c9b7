"""One program's whole allocator history as plain data, and what a comparison reads of it. No torch is imported before
a program is run.
"""

from __future__ import annotations

import bisect
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LETTERS = {
    "alloc": "a", "free_requested": "r", "free_completed": "f", "segment_alloc": "S", "segment_free": "F",
    "segment_map": "M", "segment_unmap": "U", "oom": "O",
}  # fmt: skip
"""Each action of torch's trace; what else is in a trace is no event of memory."""

Record = dict[str, Any]
"""As it goes into the file: plain data. Columns of events: ``actions`` (a letter each), ``sizes``, ``addresses``,
``streams``; ``parts``: of each its name, how many blocks had been handed out before it, and how it failed.
"""


_OFTEN = 5.0
"""Seconds between two records of an unfinished program: one that crashes leaves what it had."""


def run(name: str, answer: Callable[[Record], None]) -> None:
    """Run a program in this process, from the start of CUDA on.

    Args:
        name: of ``zoo.PROGRAMS``.
        answer: is given the record, now and then and at the end.
    """
    import torch

    from .zoo import PROGRAMS

    torch.cuda.init()
    torch.manual_seed(0)
    gc.collect()
    gc.disable()  # what a cycle holds goes at the end of its part, on every device
    torch.cuda.memory._record_memory_history(enabled="all", context=None, max_entries=1 << 22)
    begin = told = time.perf_counter()
    parts: list[list[object]] = []
    for part, call in PROGRAMS[name]():
        served = torch.cuda.memory_stats()["allocation.all.allocated"]
        parts.append([part, served, attempt(call)])
        gc.collect(0)  # what the part has made; looking through all that torch has made takes 0.1 s
        if time.perf_counter() - told > _OFTEN:
            answer(_record(parts))
            told = time.perf_counter()
    torch.cuda.synchronize()
    answer({**_record(parts), "run_seconds": round(time.perf_counter() - begin, 3)})


def _record(parts: list[list[object]]) -> Record:
    import torch

    snapshot = torch.cuda.memory._snapshot()
    return {
        **events_of(snapshot["device_traces"][0]),
        "parts": parts,
        "segments": [
            [each["address"], each["total_size"], each["allocated_size"], each["stream"]]
            for each in snapshot["segments"]
        ],
        "peak_allocated": torch.cuda.max_memory_allocated(),
        "peak_reserved": torch.cuda.max_memory_reserved(),
    }


def attempt(call: Any) -> str | None:
    """Call it, wait for the device, and keep nothing. Returns how it failed; None: it did not."""
    import torch

    try:
        call()
        torch.cuda.synchronize()
    except Exception as error:  # a part that this card or this torch can't do is a fact like any other
        return f"{type(error).__name__}: {str(error)[:300]}"
    return None


def events_of(trace: list[dict[str, Any]]) -> Record:
    """The columns of a trace of torch's snapshot."""
    rows = [each for each in trace if each["action"] in LETTERS]
    return {
        "actions": "".join(LETTERS[each["action"]] for each in rows),
        "sizes": [each["size"] for each in rows],
        "addresses": [each.get("addr", 0) for each in rows],
        "streams": [each["stream"] for each in rows],
    }


@dataclass(frozen=True, slots=True)
class Event:
    """What two devices can agree on: no address and no handle, only their order and their relations."""

    action: str
    """A letter of `LETTERS`."""
    size: int
    stream: int
    """Numbered as they first appear."""
    segment: int
    """Numbered as they come; -1: none holds it."""
    offset: int
    """Bytes from the segment's begin."""


def events(record: Record) -> list[Event]:
    """The events of a record."""
    streams: dict[int, int] = {}
    known, found = _Segments(), []
    columns = (record["actions"], record["sizes"], record["addresses"], record["streams"])
    for action, size, address, stream in zip(*columns, strict=True):
        if action in "SM":
            known.come(address, size)
        segment, offset = (-1, 0) if action == "O" else known.place(address)
        found.append(Event(action, size, streams.setdefault(stream, len(streams)), segment, offset))
        if action == "F":
            known.go(address)
    return found


class _Segments:
    """Stretches of addresses. One that pages are mapped into keeps its number when some are unmapped."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._known: dict[int, tuple[int, int]] = {}  # by the begin: the end, and the number
        self._count = 0

    def come(self, address: int, size: int) -> None:
        begin = self._below(address)
        if begin is not None and address <= self._known[begin][0] and begin != address:  # pages beside others
            end, number = self._known[begin]
            self._known[begin] = max(end, address + size), number
        elif begin != address:
            bisect.insort(self._begins, address)
            self._known[address] = address + size, self._count
            self._count += 1

    def go(self, address: int) -> None:
        if address in self._known:
            del self._known[address]
            self._begins.remove(address)

    def place(self, address: int) -> tuple[int, int]:
        begin = self._below(address)
        if begin is None or address >= self._known[begin][0]:
            return -1, 0
        return self._known[begin][1], address - begin

    def _below(self, address: int) -> int | None:
        index = bisect.bisect_right(self._begins, address)
        return self._begins[index - 1] if index else None


def parts(record: Record, found: list[Event]) -> list[tuple[str, str | None, list[Event]]]:
    """Each part's name, failure and events; what came before the first part belongs to it."""
    handed_out = [index for index, event in enumerate(found) if event.action == "a"]
    begins = []
    for _, served, _ in record["parts"]:
        begin = handed_out[served] if served < len(handed_out) else len(found)
        while begin and found[begin - 1].action in "SFMUO":  # a segment comes for the block that follows
            begin -= 1
        begins.append(begin)
    begins = [0, *begins[1:], len(found)]
    return [
        (name, failure, found[begin:end])
        for (name, _, failure), begin, end in zip(record["parts"], begins[:-1], begins[1:], strict=True)
    ]
