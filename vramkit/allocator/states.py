"""Segments and blocks at one moment, as values. Knows torch's names for them; decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..errors import SnapshotError

PoolId = tuple[int, int]
"""torch's id of a private pool: a ``MemPool``'s or a CUDA graph's."""

NO_POOL: PoolId = (0, 0)
"""Of what is in no private pool."""

BlockUse = Literal["active_allocated", "active_pending_free", "inactive"]
"""torch's words: handed out; given back while another stream still uses it; free."""

_USES: dict[str, BlockUse] = {
    "active_allocated": "active_allocated",
    "active_pending_free": "active_pending_free",
    "active_awaiting_free": "active_pending_free",  # the word in snapshots of torch 2.0 and 2.1
    "inactive": "inactive",
}


@dataclass(frozen=True, slots=True)
class BlockState:
    """One block of a segment."""

    address: int
    size: int
    """Bytes of the block: what ``memory_allocated()`` counts."""
    requested: int = 0
    """Bytes that the program asked for; of a free block, what its last owner asked for."""
    state: BlockUse = "inactive"


@dataclass(frozen=True, slots=True)
class SegmentState:
    """One segment, or one unbroken mapped range of an expandable segment, with its blocks in order of address."""

    address: int
    size: int
    """Bytes: what ``memory_reserved()`` counts."""
    blocks: tuple[BlockState, ...]
    stream: int = 0
    small: bool = False
    """Of the pool for requests of up to 1 MiB."""
    expandable: bool = False
    pool: PoolId = NO_POOL


def segments_from_torch(segments: Iterable[Mapping[str, Any]], *, device: int | None = None) -> list[SegmentState]:
    """Segments of ``torch.cuda.memory._snapshot()["segments"]`` as values.

    Args:
        segments: torch's dictionaries.
        device: index of the device whose segments are wanted; None: all.

    Returns:
        The segments in the order of the snapshot.

    Raises:
        SnapshotError: a key is missing or a block's state has an unknown name.
    """
    try:
        return [_segment(each) for each in segments if device is None or each.get("device", 0) == device]
    except (KeyError, TypeError, ValueError) as error:
        raise SnapshotError(
            "A snapshot's segments were read",
            f"one has no usable {error}",
            "Without it the blocks' places are unknown",
            "Take the snapshot with torch 2.1 or newer",
        ) from error


def allocated_blocks(segments: Iterable[Mapping[str, Any]], *, device: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """A device's blocks that are handed out, as torch's dictionaries, each with its address.

    Args:
        segments: of all devices, as of `segments_from_torch`.
        device: its index.
    """
    for segment in segments:
        if segment.get("device", 0) == device:
            for address, block in _placed(segment):
                if _USES[block["state"]] == "active_allocated":
                    yield address, block


def _placed(segment: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    address = segment["address"]
    for block in segment["blocks"]:
        # torch 2.0 gave blocks no address; they lie one behind another.
        address = block.get("address", address)
        yield address, block
        address += block["size"]


def _segment(segment: Mapping[str, Any]) -> SegmentState:
    blocks = []
    for address, block in _placed(segment):
        requested = block.get("requested_size", block["size"])
        blocks.append(BlockState(address, block["size"], requested, _USES[block["state"]]))
    major, minor = segment.get("segment_pool_id", NO_POOL)
    return SegmentState(
        segment["address"],
        segment["total_size"],
        tuple(blocks),
        segment["stream"],
        segment["segment_type"] == "small",
        segment.get("is_expandable", False),
        (major, minor),
    )


def fill(segments: Sequence[SegmentState], blocks: Sequence[BlockState]) -> list[SegmentState]:
    """Put blocks into segments; what no block covers becomes a free one.

    Args:
        segments: without blocks.
        blocks: each lies wholly in one of the segments.

    Returns:
        The segments in order of address.
    """
    ordered = sorted(blocks, key=lambda block: block.address)
    result = []
    place = 0
    for segment in sorted(segments, key=lambda each: each.address):
        inside = []
        at, end = segment.address, segment.address + segment.size
        while place < len(ordered) and ordered[place].address < end:
            block = ordered[place]
            if at < block.address:
                inside.append(BlockState(at, block.address - at))
            inside.append(block)
            at = block.address + block.size
            place += 1
        if at < end:
            inside.append(BlockState(at, end - at))
        result.append(replace(segment, blocks=tuple(inside)))
    return result
