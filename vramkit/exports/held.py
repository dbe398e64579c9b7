"""What a tape's allocator holds at the end: segments with their blocks, in torch's form. Knows tapes, and no labels.

Some sources have no addresses, or what only stands for one; and a stranger's may overlap. Then every allocation gets a
place of its own, and a segment of its own.
"""

from __future__ import annotations

import numpy as np

from ..allocator import BlockState, SegmentState
from ..allocator.conf import AllocatorConf
from ..allocator.states import fill
from ..allocator.trace_forward import Extent, Ranges, assemble
from ..tape.events import Action, Ints, Tape


def usable_addresses(tape: Tape) -> tuple[Ints, bool]:
    """An address for each allocation, no two of which hold one at the same time.

    Returns:
        The addresses; shape ``(allocations,)``. And whether they are the tape's own, in its segments.
    """
    table = tape.allocations
    address = table["address"]
    if tape.device != "cpu" and not _overlap(tape):
        return address, True
    ends = np.cumsum(table["block"])
    return ends - table["block"], False


def _overlap(tape: Tape) -> bool:
    table = tape.allocations
    order = np.lexsort((table["born"], table["address"]))
    address, born, died = (table[name][order] for name in ("address", "born", "died"))
    again = address[1:] == address[:-1]
    if (again & ((died[:-1] < 0) | (died[:-1] > born[1:]))).any():
        return True
    last = table[table["died"] < 0]
    last = last[np.argsort(last["address"], kind="stable")]
    return bool((last["address"][:-1] + last["block"][:-1] > last["address"][1:]).any())


def held_at_end(tape: Tape) -> list[SegmentState]:
    """The segments after the last event, in order of address; what no segment covers is one of its own."""
    address, has_places = usable_addresses(tape)
    rows = np.flatnonzero(tape.allocations["died"] < 0)
    alive = tape.allocations[rows]
    columns = (address[rows].tolist(), alive["block"].tolist(), alive["requested"].tolist(), alive["stream"].tolist())
    blocks = [
        (BlockState(place, block, requested, "active_allocated"), stream)
        for place, block, requested, stream in zip(*columns, strict=True)
        if block
    ]
    segments = list(_segments(tape)) if has_places else []
    starts = np.array([each.address for each in segments], np.int64)
    covered, alone = [], []
    for block, stream in blocks:
        place = int(np.searchsorted(starts, block.address, "right")) - 1
        inside = place >= 0 and block.address + block.size <= segments[place].address + segments[place].size
        if inside:
            covered.append(block)
        else:
            alone.append(SegmentState(block.address, block.size, (block,), stream))
    return sorted([*fill(segments, covered), *alone], key=lambda each: each.address)


def _segments(tape: Tape) -> tuple[SegmentState, ...]:
    """The segments after the last event, without blocks, in order of address."""
    whole: dict[int, Extent] = {}
    ranges = Ranges()
    for row in tape.segments:
        extent = int(row["size"]), int(row["stream"]), bool(row["small"]), tuple(row["pool"].tolist())
        if row["expandable"]:
            ranges.add(int(row["address"]), *extent)
        else:
            whole[int(row["address"])] = extent
    conf = AllocatorConf()
    for row in tape.events[(tape.events["action"] >= Action.SEGMENT_ALLOC) & (tape.events["action"] < Action.OOM)]:
        address, size, stream, pool = (
            int(row["address"]),
            int(row["size"]),
            int(row["stream"]),
            tuple(row["pool"].tolist()),
        )
        if row["action"] == Action.SEGMENT_ALLOC:
            whole[address] = size, stream, conf.is_small_segment(size), pool
        elif row["action"] == Action.SEGMENT_FREE:
            whole.pop(address, None)
        elif row["action"] == Action.SEGMENT_MAP:
            ranges.add(address, size, stream, conf.is_small_segment(size), pool)
        else:
            ranges.remove(address, size)
    return assemble([], whole, ranges)
