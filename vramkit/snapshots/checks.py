"""What a snapshot may hold: everything that a profile is made of is checked here. Knows torch's keys; no torch.

What comes from a pickle can be anything, and the same object a million times: nothing is compared, hashed or written
before its type is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..allocator import NO_POOL
from ..errors import shown
from ..results.files import TooLargeError
from ..tape.events import TORCH_ACTIONS

_MAX_DEVICES = 128  # torch's own limit is 120
_MAX_ID = (1 << 31) - 1  # of a private pool: the tables keep both of its numbers in 32 bits
_MAX_ADDRESS = (1 << 64) - 1
_MAX_NUMBER = (1 << 63) - 1
_MAX_SUM = 1 << 60  # of all sizes: rounded up to a power of two, they still don't overflow 64 bits
_MAX_TEXT = 10_000  # characters
_ENTRY_BYTES = 256  # what an entry or a block takes in tables and lists
_STATES = ("active_allocated", "active_pending_free", "active_awaiting_free", "inactive")


class ImpossibleError(Exception):
    """What a snapshot lacks, or has and can't have."""


def check(snapshot: Mapping[str, Any], max_bytes: int) -> None:
    """See that a snapshot is one, in everything that `open_snapshot` reads.

    Raises:
        ImpossibleError: it is not.
        TooLargeError: its entries and blocks, some of which may be one object, would take more than ``max_bytes``.
    """
    traces, segments = snapshot["device_traces"], snapshot["segments"]
    if len(traces) > _MAX_DEVICES:
        raise ImpossibleError(f"there are traces of {len(traces):,} devices")
    for segment in segments:
        if type(segment.get("blocks")) is not list:
            raise _wrong("blocks", segment.get("blocks"))
    count = sum(map(len, traces)) + len(segments) + sum(len(segment["blocks"]) for segment in segments)
    if count * _ENTRY_BYTES > max_bytes:
        raise TooLargeError
    total = sum(_check_segment(segment) for segment in segments)
    for trace in traces:
        total += _check_entries(trace)
    if total > _MAX_SUM:
        raise ImpossibleError("the sizes in it add up to more than can be")
    settings = snapshot.get("allocator_settings")
    if settings is not None:
        if type(settings) is not dict:
            raise _wrong("allocator_settings", settings)
        conf = settings.get("PYTORCH_CUDA_ALLOC_CONF")
        if conf is not None and (type(conf) is not str or len(conf) > _MAX_TEXT):
            raise _wrong("PYTORCH_CUDA_ALLOC_CONF", conf)


def _check_entries(trace: Sequence[Mapping[str, Any]]) -> int:
    """Check the entries of one device; returns the sum of their sizes."""
    total = 0
    for entry in trace:
        action = entry.get("action")
        if type(action) is not str:
            raise _wrong("action", action)
        if action not in TORCH_ACTIONS:
            continue
        size, stream = entry.get("size"), entry.get("stream")
        address, time = entry.get("addr", entry.get("device_free", 0)), entry.get("time_us", 0)
        if type(size) is not int or not 0 <= size <= _MAX_NUMBER:
            raise _wrong("size", size)
        if type(stream) is not int or not 0 <= stream <= _MAX_NUMBER:
            raise _wrong("stream", stream)
        if type(address) is not int or not 0 <= address <= _MAX_ADDRESS:
            raise _wrong("addr" if "addr" in entry else "device_free", address)
        if type(time) is not int or not 0 <= time <= _MAX_NUMBER:
            raise _wrong("time_us", time)
        _check_pool(entry.get("pool_id", NO_POOL))
        if action != "oom":
            total += size
    return total


def _check_segment(segment: Mapping[str, Any]) -> int:
    """Check a segment and its blocks; returns the sum of their sizes."""
    for key in ("address", "stream"):
        _number(key, segment.get(key))
    _number("device", segment.get("device", 0), _MAX_DEVICES - 1)
    if type(segment.get("segment_type")) is not str:
        raise _wrong("segment_type", segment.get("segment_type"))
    if type(segment.get("is_expandable", False)) is not bool:
        raise _wrong("is_expandable", segment["is_expandable"])
    _check_pool(segment.get("segment_pool_id", NO_POOL))
    total = _number("total_size", segment.get("total_size"))
    for block in segment["blocks"]:
        if type(block) is not dict:
            raise _wrong("block", block)
        state, size = block.get("state"), _number("size", block.get("size"))
        requested = _number("requested_size", block.get("requested_size", size))
        _number("address", block.get("address", 0))
        if type(state) is not str or state not in _STATES:
            raise _wrong("state", state)
        if state != "inactive" and requested > size:
            raise ImpossibleError(f"the size {size} of a block is less than the {requested} bytes that were asked for")
        total += size
    return total


def _number(key: str, value: object, maximum: int = _MAX_NUMBER) -> int:
    if type(value) is not int or not 0 <= value <= maximum:
        raise _wrong(key, value)
    return value


def _check_pool(pool: object) -> None:
    if pool == NO_POOL:
        return
    numbers = pool if type(pool) is tuple and len(pool) == 2 else (pool,)
    for number in numbers:
        _number("private pool", number, _MAX_ID)


def _wrong(key: str, value: object) -> ImpossibleError:
    return ImpossibleError(f"the {key} can't be {shown(value)}")
