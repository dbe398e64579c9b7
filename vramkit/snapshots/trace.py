"""torch's own trace of the allocator, as columns, with the block behind every entry. Knows torch's names; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..allocator import NO_POOL, AllocatorConf, ImpossibleEvent, SegmentState, follow, initial_state
from ..attribution.recording import NO_MODULE, Before, Recording
from ..errors import UsageError, shown
from ..tape.events import SEGMENT, TORCH_ACTIONS, Action, Ints, Table

_TRIES = 4
"""How often a trace is cut where it can't be undone: each time all of it is looked at."""


@dataclass(frozen=True)
class Columns:
    """A trace's entries; one item an entry, in their order."""

    action: npt.NDArray[np.uint8]
    """Codes of ``vramkit.tape.events.Action``."""
    address: Ints
    """Of a failure, bytes that the device had free; 0: not known."""
    size: Ints
    """Bytes as torch records them."""
    stream: Ints
    time: Ints
    """Microseconds."""
    pool: Ints | None
    """torch's id of each entry's private pool, 0, 0 for none; shape ``(entries, 2)``. None: torch didn't say."""

    def after(self, count: int) -> Columns:
        """Those after so many entries."""
        return Columns(
            action=self.action[count:],
            address=self.address[count:],
            size=self.size[count:],
            stream=self.stream[count:],
            time=self.time[count:],
            pool=None if self.pool is None else self.pool[count:],
        )


@dataclass(frozen=True)
class Followed:
    """What the entries imply."""

    block: Ints
    """Bytes of the block that each allocation got; 0 for other entries."""
    before: list[Before]
    """Blocks that were alive before the first entry."""
    segments: Table
    """dtype ``SEGMENT``: what the allocator held before the first entry."""
    alloc_conf: str
    pool: Ints | None
    """As of `Columns`; where torch didn't say, what is held before and after says of its own segments."""
    notes: list[str]
    """What could not be known."""


def columns_of(entries: Sequence[Mapping[str, Any]]) -> Columns:
    """The columns of a trace, all of whose actions are in ``TORCH_ACTIONS``."""
    count = len(entries)
    return Columns(
        action=np.fromiter((TORCH_ACTIONS[entry["action"]] for entry in entries), np.uint8, count),
        address=np.fromiter(
            (_signed(entry.get("addr", entry.get("device_free", 0))) for entry in entries), np.int64, count
        ),
        size=np.fromiter((entry["size"] for entry in entries), np.int64, count),
        stream=np.fromiter((entry["stream"] for entry in entries), np.int64, count),
        time=np.fromiter((entry.get("time_us", 0) for entry in entries), np.int64, count),
        pool=_pools_of(entries),
    )


def conf_text_of(snapshot: Mapping[str, Any]) -> str:
    """``PYTORCH_CUDA_ALLOC_CONF`` as a snapshot has it; empty where it has none."""
    return str((snapshot.get("allocator_settings") or {}).get("PYTORCH_CUDA_ALLOC_CONF") or "")


def follow_trace(
    columns: Columns, conf_text: str, first: Sequence[SegmentState] | None, last: Sequence[SegmentState]
) -> Followed:
    """Find the block behind every entry.

    Args:
        columns: the trace.
        conf_text: the allocator's settings.
        first: what the allocator held before the first entry; None: nobody knows, and it is worked out from ``last``.
        last: what it held after the last one.

    Raises:
        ImpossibleEvent: it can't be worked out from ``last``.
    """
    conf, notes = _conf_of(conf_text)
    events = (columns.action, columns.address, columns.size, columns.stream)
    pool = columns.pool
    if pool is None and any(each.pool != NO_POOL for each in (*(first or ()), *last)):
        pool = _pools_held(columns, first or (), last)
        came = np.flatnonzero(np.isin(columns.action, (Action.SEGMENT_ALLOC, Action.SEGMENT_MAP)))
        went = np.flatnonzero(np.isin(columns.action, (Action.SEGMENT_FREE, Action.SEGMENT_UNMAP)))
        if len(came) and len(went) and came[0] < went[-1]:
            notes.append(
                "Some memory is in private pools, of a MemPool or a CUDA graph, and this version of torch doesn't "
                "record which allocations are: in a replay, what a pool took and gave back is the common pool's."
            )
    if first is None:
        state = initial_state(last, *events, conf, pool=pool)
        first = state.segments
        if state.ambiguous:
            maximum = sum(each.largest - each.size for each in state.ambiguous)
            notes.append(f"Blocks from before the first event may be larger than assumed, by {maximum:,} bytes in all.")
    try:
        block = follow(first, *events, conf)
    except ImpossibleEvent as error:
        block = error.blocks
        notes.append(f"From event {error.event:,} on, sizes of blocks are rounded requests. {error}")
    before = [
        Before(
            address=block.address,
            block=block.size,
            requested=block.requested,
            stream=segment.stream,
            pool=segment.pool,
        )
        for segment in first
        for block in segment.blocks
        if block.state == "active_allocated"
    ]
    table = np.zeros(len(first), SEGMENT)
    for i, each in enumerate(first):
        table[i] = (each.address, each.size, each.stream, each.small, each.expandable, each.pool)
    return Followed(block=block, before=before, segments=table, alloc_conf=conf_text, pool=pool, notes=notes)


def follow_from_the_end(columns: Columns, conf_text: str, last: Sequence[SegmentState]) -> tuple[int, Followed]:
    """Find the block behind every entry of a trace that may not lead to what the allocator holds after it.

    Args:
        columns, conf_text, last: as of `follow_trace`.

    Returns:
        How many entries at the beginning can't be used, and what the others imply; a note says why.
    """
    count, skipped, note = len(columns.action), 0, ""
    for _ in range(_TRIES):
        try:
            followed = follow_trace(columns.after(skipped), conf_text, None, last)
        except ImpossibleEvent as error:
            if not last and _begins_with_nothing(columns, conf_text):
                followed = follow_trace(columns, conf_text, (), last)
                note = "What the history ends with is not in the file, which has no segment of this device."
                break
            skipped += error.event + 1
            note = (
                f"The first {skipped:,} of {count:,} events are left out: the last of them can't be undone from what "
                f"is held at the end ({error.why})."
            )
        else:
            break
    else:
        skipped, note = count, "The history is left out: what is held at the end does not follow from it."
        followed = follow_trace(columns.after(count), conf_text, None, last)
    return skipped, replace(followed, notes=[*followed.notes, *([note] if note else [])])


def _begins_with_nothing(columns: Columns, conf_text: str) -> bool:
    """Whether all entries are possible if nothing was held before them."""
    conf, _ = _conf_of(conf_text)
    try:
        follow((), columns.action, columns.address, columns.size, columns.stream, conf)
    except ImpossibleEvent:
        return False
    return True


def _conf_of(text: str) -> tuple[AllocatorConf, list[str]]:
    """The settings, and a note where they are not known."""
    try:
        return AllocatorConf.parse(text), []
    except UsageError:
        return AllocatorConf(), [
            f"The allocator's settings {shown(text)} are not all known here; the defaults were assumed."
        ]


def recording_of(device: str, columns: Columns, followed: Followed) -> Recording:
    """What a trace alone says: a recording without marks, to which a source that made some adds them.

    Args:
        device: in torch's words, ``"cuda:0"``.
        columns: the trace.
        followed: what it implies.
    """
    count = len(columns.action)
    return Recording(
        device=device,
        action=columns.action,
        address=columns.address,
        size=columns.size,
        stream=columns.stream,
        time=columns.time,
        block=followed.block,
        pool=followed.pool,
        mark=np.zeros(count, np.int64),
        at_module=np.full(count, NO_MODULE, np.int32),
        position=np.zeros(1, np.int64),
        before=followed.before,
        segments=followed.segments,
        alloc_conf=followed.alloc_conf,
        # Entries name their private pool since torch 2.12, as old as ties by age are.
        tie_break="address" if columns.pool is None else "age",
    )


def _pools_of(entries: Sequence[Mapping[str, Any]]) -> Ints | None:
    if entries and "pool_id" not in entries[0]:  # came with pytorch pull request 177717
        return None
    pools = np.zeros((len(entries), 2), np.int64)
    for i, entry in enumerate(entries):
        if (identity := entry["pool_id"]) != NO_POOL:
            pools[i] = identity
    return pools


def _pools_held(columns: Columns, first: Sequence[SegmentState], last: Sequence[SegmentState]) -> Ints:
    """The pools of entries in segments that are held before or after them all; of others, none."""
    pools = np.zeros((len(columns.action), 2), np.int64)
    for segments, is_last in ((first, False), (last, True)):
        for segment in segments:
            if segment.pool == NO_POOL:
                continue
            inside = (columns.address >= segment.address) & (columns.address < segment.address + segment.size)
            inside &= columns.action != Action.OOM  # which has no address
            edges = np.flatnonzero(
                inside & (columns.action == (Action.SEGMENT_ALLOC if is_last else Action.SEGMENT_FREE))
            )
            if len(edges):  # on its other side the addresses were another segment's
                inside[slice(None, edges[-1]) if is_last else slice(edges[0] + 1, None)] = False
            pools[inside] = segment.pool
    return pools


def _signed(address: int) -> int:
    return address - (1 << 64) if address >= 1 << 63 else address
