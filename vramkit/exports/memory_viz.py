"""A result as a snapshot of torch's, with what vramkit knows as labels: for ``torch.cuda._memory_viz`` and its page.

Knows the snapshot's keys, as ``torch.cuda.memory._snapshot`` documents them; what is held at the end is ``held``'s.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from ..allocator import NO_POOL, SegmentState
from ..errors import printable
from ..reports.sentences import CATEGORY_NAMES, place
from ..reports.tree import shown_name
from ..tape.action_codes import ALLOC as _ALLOC
from ..tape.action_codes import FREE as _FREE
from ..tape.action_codes import OOM as _OOM
from ..tape.events import TORCH_ACTIONS, Action, Category, Ints, Phase
from ..tape.memory import MemoryResult
from ..tape.owners import owners
from ..tape.stacks import Frame
from .held import held_at_end, usable_addresses

_PROTOCOL = 4  # the page's reader knows no newer one
_MAX_DEVICE = 127
_ACTIONS = {int(action): name for name, action in TORCH_ACTIONS.items()}

_Frames = list[dict[str, Any]]
_NO_FRAMES: _Frames = []
_LAST = {
    "action": "snapshot",
    "addr": 0,
    "size": 0,
    "stream": 0,
    "time_us": 0,
    "frames": _NO_FRAMES,
    "category": "unknown",
}
"""As torch ends a trace. The page gives what was there before a trace the category ``unknown``, and some versions of it
stop where no entry has that (``annotate_snapshot`` in its MemoryViz.js)."""


def write_memory_viz(result: MemoryResult, file: BinaryIO) -> None:
    """Write a result, of all its devices, as torch's own snapshot.

    Args:
        result: a profile or an estimate.
        file: to write to.
    """
    segments: list[dict[str, Any]] = []
    traces: dict[int, list[dict[str, Any]]] = {}
    for one in result.each_device():
        number = _device_number(one.device, traces)
        writer = _Writer(one)
        segments += writer.segments(number)
        traces[number] = writer.trace()
    snapshot = {
        "segments": segments,
        "device_traces": [traces.get(number, []) for number in range(max(traces) + 1)],
        "allocator_settings": {"PYTORCH_CUDA_ALLOC_CONF": printable(result.tape.alloc_conf)},
        "categories": [CATEGORY_NAMES[category] for category in Category],
    }
    pickle.dump(snapshot, file, _PROTOCOL)


def _device_number(device: str, taken: Mapping[int, object]) -> int:
    _, _, digits = device.partition(":")
    number = int(digits) if digits.isdigit() else 0
    return number if number <= _MAX_DEVICE and number not in taken else next(i for i in range(1024) if i not in taken)


class _Writer:
    """One device's segments and entries."""

    def __init__(self, result: MemoryResult) -> None:
        self._result = result
        self._owner = owners(result.tape)
        self._address, self._has_places = usable_addresses(result.tape)
        self._labels: dict[tuple[int, ...], tuple[str, _Frames]] = {}
        self._of_module: dict[int, _Frames] = {-1: []}
        self._of_frame: dict[Frame, dict[str, Any]] = {}

    def segments(self, device: int) -> list[dict[str, Any]]:
        """What is held at the end."""
        tape = self._result.tape
        rows = np.flatnonzero(tape.allocations["died"] < 0)
        labels = dict(zip(self._address[rows].tolist(), self._label_rows(rows), strict=True))
        return [_segment(each, device, labels) for each in held_at_end(tape)]

    def trace(self) -> list[dict[str, Any]]:
        """The entries: torch's, and before them an annotation of each allocation that was there already."""
        tape = self._result.tape
        events, table = tape.events, tape.allocations
        labels = self._label_rows(np.arange(len(table)))
        category = [CATEGORY_NAMES[Category(code)] for code in table["category"].tolist()]
        # A last address for the events that have no allocation, which are at -1.
        address = np.where(
            events["allocation"] >= 0, np.append(self._address, 0)[events["allocation"]], events["address"]
        )
        completes = not (events["action"] == Action.FREE_COMPLETED).any()
        moves = events["action"] >= Action.SEGMENT_ALLOC
        shown = np.flatnonzero(self._has_places | ~moves | (events["action"] == Action.OOM))
        entries = self._annotations(labels)
        free = np.maximum(0, self._result.capacity - self._result.outside - tape.reserved)
        free = np.where((events["action"] == Action.OOM) & (events["address"] > 0), events["address"], free)
        columns = [events[name][shown].tolist() for name in ("action", "allocation", "size", "stream", "time")]
        pools = map(tuple, events["pool"][shown].tolist())
        for event, action, row, size, stream, time, at, pool in zip(
            shown.tolist(), *columns, address[shown].tolist(), pools, strict=True
        ):
            entry = {
                "action": _ACTIONS[action],
                "addr": at,
                "size": size,
                "stream": stream,
                "time_us": time,
                "frames": _NO_FRAMES,
                "pool_id": pool if pool != NO_POOL else NO_POOL,  # one object for all
            }
            if action == _ALLOC:
                entry["user_metadata"], entry["frames"] = labels[row]
                entry["category"] = category[row]
            elif action == _OOM:
                del entry["addr"]
                entry["device_free"] = int(free[event])
            entries.append(entry)
            if action == _FREE and completes:
                entries.append({**entry, "action": "free_completed"})
        return [*entries, _LAST] if entries else []

    def _annotations(self, labels: Sequence[tuple[str, _Frames]]) -> list[dict[str, Any]]:
        table = self._result.tape.allocations
        return [
            {
                "action": "annotate",
                "addr": int(self._address[row]),
                "size": int(table["requested"][row]),
                "stream": int(table["stream"][row]),
                "time_us": 0,
                "frames": _NO_FRAMES,
                "user_metadata": labels[row][0],
            }
            for row in np.flatnonzero(table["born"] < 0).tolist()
        ]

    def _label_rows(self, rows: Ints) -> list[tuple[str, _Frames]]:
        """Of some allocations the text that is shown beside each, and what is shown as its stack; equal ones shared."""
        table = self._result.tape.allocations[rows]
        stack = np.full(len(rows), -1) if self._result.tape.stacks is None else self._result.tape.stacks.of[rows]
        keys = (table["category"], table["phase"], table["name"], self._owner[rows], stack, table["operator"])
        return [self._label(key) for key in zip(*(column.tolist() for column in keys), strict=True)]

    def _label(self, key: tuple[int, ...]) -> tuple[str, _Frames]:
        found = self._labels.get(key)
        if found is None:
            found = self._labels[key] = self._make_label(*key)
        return found

    def _make_label(
        self, category: int, phase: int, name: int, module: int, stack: int, operator: int
    ) -> tuple[str, _Frames]:
        tape = self._result.tape
        what = CATEGORY_NAMES[Category(category)]
        called = shown_name(tape.names[name]) if name >= 0 else ""
        where = shown_name(tape.modules[module].name) if module >= 0 and not called else ""
        made = f"made {place(Phase(phase))}" if tape.knows_phases or phase != Phase.OUTSIDE else ""
        made_by = printable(tape.operators[operator - 1]) if operator else ""
        frames = [{"filename": what, "line": 0, "name": called or made or what}]
        if made_by:
            frames.append({"filename": "operator", "line": 0, "name": made_by})
        frames += self._frames(stack) if stack >= 0 else self._modules(module)
        return " | ".join(filter(None, (what, called or where, made, made_by))), frames

    def _frames(self, stack: int) -> _Frames:
        """A stack's frames, innermost first, as torch's."""
        stacks = self._result.tape.stacks
        assert stacks is not None
        return [self._frame(each) for each in stacks.stack(stack)]

    def _frame(self, frame: Frame) -> dict[str, Any]:
        found = self._of_frame.get(frame)  # one object for all
        if found is None:
            found = {"filename": printable(frame.file), "line": frame.number, "name": printable(frame.function)}
            self._of_frame[frame] = found
        return found

    def _modules(self, module: int) -> _Frames:
        """A module and those that it is in, innermost first, as frames of a stack."""
        if module not in self._of_module:
            each = self._result.tape.modules[module]
            frame = {"filename": shown_name(each.name), "line": 0, "name": printable(each.kind)}
            self._of_module[module] = [frame, *self._modules(each.parent)]
        return self._of_module[module]


def _segment(segment: SegmentState, device: int, labels: Mapping[int, tuple[str, _Frames]]) -> dict[str, Any]:
    allocated = [block for block in segment.blocks if block.state != "inactive"]
    held = sum(block.size for block in allocated)
    return {
        "device": device,
        "address": segment.address,
        "total_size": segment.size,
        "allocated_size": held,
        "active_size": held,
        "requested_size": sum(block.requested for block in allocated),
        "stream": segment.stream,
        "segment_type": "small" if segment.small else "large",
        "segment_pool_id": segment.pool,
        "is_expandable": segment.expandable,
        "frames": _NO_FRAMES,
        "blocks": [
            {
                "address": block.address,
                "size": block.size,
                "requested_size": block.requested,
                "state": block.state,
                "frames": labels[block.address][1] if block.state != "inactive" else _NO_FRAMES,
            }
            for block in segment.blocks
        ],
    }
