"""A result as a Chrome trace, which Perfetto shows: counters by category, slices for steps, phases and modules.

Knows the format (JSON, ``traceEvents``) and how much of it a viewer can take; times are ``axis``'s.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .._version import __version__
from ..errors import printable
from ..reports.moments import boundaries, failures, shown_moments
from ..reports.sentences import CATEGORY_NAMES, PHASE_NAMES
from ..reports.tree import shown_name
from ..sizes import format_size
from ..tape.events import Category, Ints, Phase, Tape
from ..tape.memory import MemoryResult
from .axis import has_clock, moment_times, runs

MAX_MOMENTS = 100_000
"""Moments of all devices together, at most."""

MAX_SLICES = 50_000
"""Slices of each kind and device, at most: of more, the longest."""

_TRACKS = ("steps", "phases", "modules")  # threads 1 to 3 of a device
_STEPS, _PHASES, _MODULES = 1, 2, 3
_TIME = {
    True: "microseconds by the recording's clock; each device's first event is at 1",
    False: "number of the event, from 1: the recording has no times",
}


def write_perfetto(result: MemoryResult, file: BinaryIO) -> None:
    """Write a result, of all its devices, as a Chrome trace.

    Args:
        result: a profile or an estimate.
        file: to write to.
    """
    devices = list(result.each_device())
    limit = max(2, MAX_MOMENTS // len(devices))
    tracks = [_Device(each, number, limit) for number, each in enumerate(devices)]
    file.write(b'{"traceEvents":[\n')
    separator = ""
    for track in tracks:
        for event in track.events():
            file.write(f"{separator}{event}".encode())
            separator = ",\n"
    about = {
        "vramkit": __version__,
        **{f"recorded with {printable(name)}": printable(version) for name, version in result.versions.items()},
        "counters": "bytes",
        "devices": {track.name: track.about() for track in tracks},
    }
    file.write(f'\n],"displayTimeUnit":"ms","otherData":{json.dumps(about)}}}\n'.encode())


class _Device:
    """One device: a process of the trace, with its counters and three tracks of slices."""

    def __init__(self, result: MemoryResult, number: int, limit: int) -> None:
        self._result = result
        self._number = number
        known = f" ({printable(result.device_name)})" if result.device_name else ""
        self.name = f"{result.device}{known}"
        self._times = moment_times(result.tape)
        self._rows = shown_moments(result, limit, np.concatenate([failures(result), boundaries(result)]))
        self._left_out = dict.fromkeys(_TRACKS, 0)

    def about(self) -> dict[str, Any]:
        """What a reader of the file has to know; complete when the events were written."""
        result = self._result
        moments = len(result.timeline)
        return {
            "time": _TIME[has_clock(result.tape)],
            "moments": f"{len(self._rows)} of {moments}"
            + ("; of the others none is the highest of its neighbours" * (len(self._rows) < moments)),
            "slices left out": {name: count for name, count in self._left_out.items() if count},
            "notes": [printable(note) for note in result.notes],
        }

    def events(self) -> Iterator[str]:
        """Every event as a text of JSON."""
        yield self._meta("process_name", 0, self.name)
        for thread, name in enumerate(_TRACKS, 1):
            yield self._meta("thread_name", thread, name)
            yield self._event("thread_sort_index", "M", thread, args={"sort_index": thread})
        yield from self._counters()
        tape = self._result.tape
        if len(tape.events) and tape.knows_phases:
            yield from self._steps(tape)
            yield from self._phases(tape)
            yield from self._modules(tape)
        yield from self._failures()

    def _meta(self, kind: str, thread: int, name: str) -> str:
        return self._event(kind, "M", thread, args={"name": name})

    def _event(self, name: str, kind: str, thread: int, **more: object) -> str:
        return json.dumps({"name": name, "ph": kind, "pid": self._number, "tid": thread, **more})

    def _counters(self) -> Iterator[str]:
        timeline = self._result.timeline
        columns = timeline.by_category
        series = {CATEGORY_NAMES[each]: columns[:, each] for each in Category if columns[:, each].any()}
        series |= {"rounding and slack": timeline.slack, "allocated": timeline.allocated, "reserved": timeline.reserved}
        for name, column in series.items():
            values = column[self._rows]
            changed = runs(values)
            head = f'{{"name":{json.dumps(name)},"ph":"C","pid":{self._number},"ts":'
            times = (self._times[self._rows[changed]] / 1000).tolist()
            for time, value in zip(times, values[changed].tolist(), strict=True):
                yield f'{head}{time},"args":{{"bytes":{value}}}}}'

    def _steps(self, tape: Tape) -> Iterator[str]:
        step = tape.events["step"]
        begins = runs(step)
        names = [f"step {number + 1}" for number in step[begins].tolist()]
        yield from self._slices(_STEPS, begins, _ends(begins, len(step)), names)

    def _phases(self, tape: Tape) -> Iterator[str]:
        phase, step = tape.events["phase"], tape.events["step"]
        begins = runs(phase, step)
        ends = _ends(begins, len(phase))
        inside = phase[begins] != Phase.OUTSIDE
        names = [PHASE_NAMES[Phase(code)] for code in phase[begins[inside]].tolist()]
        yield from self._slices(_PHASES, begins[inside], ends[inside], names)

    def _modules(self, tape: Tape) -> Iterator[str]:
        """A slice for each stay in a module, one inside another; outer ones first, as far as the limit goes."""
        events = tape.events
        begins = runs(events["module"], events["phase"], events["step"])
        at = events[begins]
        paths = _paths(tape)
        labels = [shown_name(module.name) for module in tape.modules]
        kinds = [printable(module.kind) for module in tape.modules]
        left = MAX_SLICES
        for depth in range(paths.shape[1]):
            module = np.where(at["module"] >= 0, paths[at["module"], depth], -1)
            first = runs(module, at["phase"], at["step"])
            start, end = begins[first], _ends(begins[first], len(events))
            inside = module[first] >= 0
            chosen = module[first][inside].tolist()
            names = [_local_name(labels[each], depth) for each in chosen]
            args = [{"module": labels[each], "class": kinds[each]} for each in chosen]
            yield from self._slices(_MODULES, start[inside], end[inside], names, args, limit=left)
            left = max(0, left - len(chosen))

    def _slices(
        self,
        thread: int,
        begins: Ints,
        ends: Ints,
        names: list[str],
        args: list[dict[str, str]] | None = None,
        limit: int = MAX_SLICES,
    ) -> Iterator[str]:
        """Slices of a track, from an event to before another."""
        start = self._times[begins + 1]
        duration = np.maximum(self._times[np.minimum(ends + 1, len(self._times) - 1)] - start, 1)
        chosen = np.arange(len(begins))
        if len(chosen) > limit:
            self._left_out[_TRACKS[thread - 1]] += len(chosen) - limit
            chosen = np.sort(np.argsort(-duration, kind="stable")[:limit])
        for i in chosen.tolist():
            more = {} if args is None else {"args": args[i]}
            yield self._event(names[i], "X", thread, ts=start[i] / 1000, dur=duration[i] / 1000, **more)

    def _failures(self) -> Iterator[str]:
        for failed in self._result.out_of_memory[-MAX_SLICES:]:
            time = self._times[failed.event + 1] / 1000
            name = f"out of memory: {format_size(failed.requested)} asked for"
            yield self._event(name, "i", _PHASES, ts=time, s="p", args={"module": shown_name(failed.module)})


def _local_name(name: str, depth: int) -> str:
    """What a slice inside others is called: the last part of a module's name, or two where that is a number."""
    parts = name.split(".")
    return name if depth == 0 else ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])


def _ends(begins: Ints, count: int) -> Ints:
    """The event at which each run ends: where the next one begins."""
    return np.append(begins[1:], count)


def _paths(tape: Tape) -> npt.NDArray[np.int32]:
    """For each module the modules that it is in, outermost first, and itself; then -1. Shape ``(modules, depth)``."""
    depth = np.zeros(len(tape.modules), np.int64)
    for index, module in enumerate(tape.modules):
        if module.parent >= 0:
            depth[index] = depth[module.parent] + 1
    paths = np.full((len(tape.modules), int(depth.max(initial=-1)) + 1), -1, np.int32)
    for index, module in enumerate(tape.modules):
        if module.parent >= 0:
            paths[index] = paths[module.parent]
        paths[index, depth[index]] = index
    return paths
