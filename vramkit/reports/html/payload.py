"""What a page is made of, as data: plain values for JSON, and columns of numbers. Knows results; draws nothing.

The page works out everything about a moment from two tables, the allocations' lives and the segments' lives, each with
the first shown moment at which it was there and how many more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import printable
from ...gpus import common_gpus
from ...tape.events import Category, Ints, Phase, Tape
from ...tape.memory import MemoryResult
from ...tape.owners import owners
from ..advice import advise
from ..moment import moment_of
from ..moments import boundaries, failures, flushes, shown_moments
from ..nccl import nccl_row
from ..sentences import CATEGORY_NAMES, PHASE_NAMES, failure, recovered, step_count
from ..tree import shown_name
from .beside import Beside
from .columns import ColumnPlace, Columns
from .prediction import Prediction
from .segments import segment_lives
from .tabs import Tabs, tabs_of

MAX_MOMENTS = 250_000
"""Moments that a page has, at most, of all devices together: a file of some megabytes."""

_MAX_MARKS = 2_000
_POINT = ("batch_size", "peak_allocated", "peak_reserved", "used", "fits")
_ROUNDING = 512


def payload(
    result: MemoryResult,
    prediction: Prediction | None = None,
    beside: Sequence[Beside] = (),
    tabs: Tabs | None = None,
) -> tuple[dict[str, Any], Columns]:
    """Everything that a page shows.

    Args:
        result: with all its devices.
        prediction: what an estimate has besides.
        beside: another result's figures of each device; empty: there is none.
        tabs: what there is a tab for; None: each device of the result.

    Returns:
        A header for JSON, and the columns that it points to.
    """
    columns = Columns()
    tabs = tabs or tabs_of(result)
    limit = max(2, MAX_MOMENTS // len(tabs.of))
    header = {
        "versions": {printable(name): printable(version) for name, version in result.versions.items()},
        "categories": [CATEGORY_NAMES[category] for category in Category],
        "phases": [PHASE_NAMES[phase] for phase in Phase],
        "prediction": None if prediction is None else _prediction(prediction),
        "beside": [each.header() for each in beside],
        "tabs": tabs.kind,
        "devices": [{"tab": printable(name), **_Device(each, columns, limit).header()} for name, each in tabs.of],
    }
    return header, columns


def _prediction(prediction: Prediction) -> dict[str, Any]:
    gpu = prediction.gpu
    cards = {each.product or each.name: each.memory for each in common_gpus()} | {gpu.product or gpu.name: gpu.memory}
    return {
        "engine": prediction.engine,
        "card": gpu.product or gpu.name,
        "batch_size": prediction.batch_size,
        "verdict": prediction.verdict,
        "fits": prediction.fits,
        "curve": [{name: getattr(point, name) for name in _POINT} for point in prediction.curve],
        "why_no_curve": prediction.why_no_curve,
        "cards": [{"name": name, "memory": memory} for name, memory in sorted(cards.items(), key=lambda card: card[1])],
    }


class _Device:
    """One device's part of the header."""

    def __init__(self, result: MemoryResult, columns: Columns, limit: int) -> None:
        self._result = result
        self._columns = columns
        self._moment = moment_of(result)
        self._lines = result.tape.stacks
        self._pooled = result.tape.has_graph_pools and result.device != "cpu"
        marks = np.concatenate([failures(result)[-_MAX_MARKS:], flushes(result)[:_MAX_MARKS]])
        always = np.concatenate([[self._moment.event + 1], marks, boundaries(result)])
        self._rows = shown_moments(result, limit, always)

    def header(self) -> dict[str, Any]:
        result, tape, moment, rows = self._result, self._result.tape, self._moment, self._rows
        return {
            "device": result.device,
            "name": printable(result.device_name),
            "capacity": result.capacity,
            "outside": result.outside,
            "nccl": None if (nccl := nccl_row(result)) is None else asdict(nccl),
            "pooled": self._pooled,
            "knows_phases": tape.knows_phases,
            "is_window": result.is_window,
            "is_moment": result.is_moment,
            "steps": step_count(result),
            "events": len(tape.events),
            "peak_allocated": result.peak_allocated,
            "peak_reserved": result.peak_reserved,
            "conf": printable(tape.alloc_conf),
            "notes": [" ".join(printable(note).split()) for note in result.notes],
            "happened": failure(result, moment) if moment.failed else recovered(result, moment),
            "failed": moment.failed is not None,
            "advice": [each.to_record() for each in advise(result, moment)],
            "moment": self._shown(moment.event + 1),
            "peak": self._shown(result.timeline.peak_moment),
            "moments": self._moments(),
            "allocations": self._allocations(),
            "segments": self._segments() if result.device != "cpu" else None,
            "failures": self._failures(),
            "flushes": [self._shown(row) for row in flushes(result)[:_MAX_MARKS]],
            "modules": self._modules(),
            "names": [shown_name(name) for name in tape.names],
            "stacks": self._stacks(),
            "operators": [printable(operator) for operator in tape.operators],
            "count": len(rows),
        }

    def _shown(self, row: int) -> int:
        """Which of the shown moments a row of the timeline is, or the next after it."""
        return min(int(np.searchsorted(self._rows, row)), len(self._rows) - 1)

    def _failures(self) -> list[dict[str, int]]:
        found = self._result.out_of_memory[-_MAX_MARKS:]
        return [{"moment": self._shown(each.event + 1), "size": each.requested} for each in found]

    def _add(self, **columns: npt.ArrayLike) -> dict[str, ColumnPlace]:
        return {name: self._columns.add(values) for name, values in columns.items()}

    def _moments(self) -> dict[str, ColumnPlace]:
        """Of each shown moment its row of the timeline, and where the program was: as of the event that led to it."""
        events = self._result.tape.events
        if not len(events):
            return self._add(row=self._rows, step=[0], phase=[Phase.OUTSIDE], module=[-1])
        at = np.maximum(self._rows - 1, 0)
        return self._add(
            row=self._rows, step=events["step"][at], phase=events["phase"][at], module=events["module"][at]
        )

    def _lives(self, born: Ints, died: Ints) -> tuple[Ints, Ints, Ints]:
        """Which were there at any shown moment; of those the first moment, and how many they are."""
        begin = np.searchsorted(self._rows, born + 1)
        end = np.where(died < 0, len(self._rows), np.searchsorted(self._rows, died + 1))
        seen = np.flatnonzero(begin < end)
        return seen, begin[seen], (end - begin)[seen]

    def _allocations(self) -> dict[str, ColumnPlace]:
        table = self._result.tape.allocations
        seen, begin, count = self._lives(table["born"], table["died"])
        table = table[seen]
        rounded = -(-table["requested"] // _ROUNDING) * _ROUNDING
        pooled = {"pooled": table["pool"].any(axis=1)} if self._pooled else {}
        return self._add(
            begin=begin,
            count=count,
            requested=table["requested"],
            extra=table["block"] - rounded,
            address=table["address"],
            category=table["category"],
            phase=table["phase"],
            step=table["step"],
            module=table["module"],
            owner=owners(self._result.tape)[seen],
            name=table["name"],
            **({} if self._lines is None else {"line": self._lines.lines[seen], "stack": self._lines.of[seen]}),
            **({"operator": table["operator"]} if self._result.tape.operators else {}),
            **pooled,
        )

    def _stacks(self) -> dict[str, Any] | None:
        """Every frame as a text, and whose it is; and the tree of the stacks. None: nobody looked."""
        stacks = self._lines
        if stacks is None:
            return None
        return {
            "frames": [printable(text) for text in stacks.texts],
            **self._add(
                whose=[frame.whose for frame in stacks.frames],
                frame=stacks.table["frame"],
                parent=stacks.table["parent"],
            ),
        }

    def _segments(self) -> dict[str, ColumnPlace]:
        born, died, *columns = segment_lives(self._result.tape).T
        seen, begin, count = self._lives(born, died)
        address, size, stream, expandable, private = (column[seen] for column in columns)
        pooled = {"pooled": private} if self._pooled else {}
        return self._add(
            begin=begin, count=count, address=address, size=size, stream=stream, expandable=expandable, **pooled
        )

    def _modules(self) -> dict[str, Any]:
        modules = self._result.tape.modules
        usage = [each for root in self._result.by_module for each in root.walk()]
        peak = np.zeros(len(modules), np.int64)
        peak[_outermost_first(self._result.tape)] = [each.peak for each in usage]
        return {
            "name": [shown_name(module.name) for module in modules],
            "kind": [printable(module.kind) for module in modules],
            "shape": ["x".join(map(str, module.output_shape)) for module in modules],
            **self._add(
                parent=[module.parent for module in modules], calls=[module.calls for module in modules], peak=peak
            ),
        }


def _outermost_first(tape: Tape) -> list[int]:
    """Indices of the modules in the order in which `MemoryResult.by_module` walks."""
    children: list[list[int]] = [[] for _ in tape.modules]
    order: list[int] = []
    pending: list[int] = []
    for index, module in enumerate(tape.modules):
        (children[module.parent] if module.parent >= 0 else pending).append(index)
    pending.reverse()
    while pending:
        index = pending.pop()
        order.append(index)
        pending += reversed(children[index])
    return order
