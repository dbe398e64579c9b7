"""Recordings of real GPUs as traces, and a driver that answers a simulator as theirs did. Judges nothing."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vramkit.allocator import (
    AllocatorConf,
    DeviceCachingAllocator,
    InitialState,
    SegmentState,
    SimulatedOutOfMemory,
    initial_state,
    segments_from_torch,
)
from vramkit.allocator.device import DriverMemory
from vramkit.tape.events import TORCH_ACTIONS, Action

FOLDER = Path(__file__).parent.parent / "recordings"
NAMES = tuple(sorted(path.name.removesuffix(".json.gz") for path in FOLDER.glob("*.json.gz")))

Event = tuple[int, int, int, int]
"""Action, address, bytes, stream."""

_CAME = (Action.SEGMENT_ALLOC, Action.SEGMENT_MAP)
_WENT = (Action.SEGMENT_FREE, Action.SEGMENT_UNMAP)


@dataclass(frozen=True)
class Trace:
    """What one device's allocator did, and what it held afterwards."""

    name: str
    events: tuple[Event, ...]
    segments: tuple[SegmentState, ...]
    """After the last event, in order of address."""
    conf: AllocatorConf

    @cached_property
    def columns(self) -> tuple[npt.NDArray[np.int64], ...]:
        """Action, address, size, stream."""
        return tuple(np.array(column, np.int64) for column in zip(*self.events, strict=True))

    @cached_property
    def start(self) -> InitialState:
        """What the allocator held before the first event."""
        return initial_state(self.segments, *self.columns, self.conf)


@lru_cache
def traces(name: str) -> tuple[Trace, ...]:
    """The traces of a recording, one for each device that did something."""
    with gzip.open(FOLDER / f"{name}.json.gz", "rt") as file:
        recording = json.load(file)
    conf = AllocatorConf.parse((recording["allocator_settings"] or {}).get("PYTORCH_CUDA_ALLOC_CONF", ""))
    found = []
    for device, entries in enumerate(recording["device_traces"]):
        events = tuple(
            (int(TORCH_ACTIONS[action]), address or 0, size, stream)
            for action, size, address, stream in entries
            if action in TORCH_ACTIONS
        )
        if events:
            segments = segments_from_torch(map(_torch_segment, recording["segments"]), device=device)
            ordered = tuple(sorted(segments, key=lambda segment: segment.address))
            found.append(Trace(f"{name}:{device}", events, ordered, conf))
    return tuple(found)


def all_traces() -> Iterator[Trace]:
    """Every device's trace of every recording."""
    for name in NAMES:
        yield from traces(name)


def _torch_segment(segment: dict[str, object]) -> dict[str, object]:
    """A segment under torch's own keys; the recordings have shorter ones."""
    keys = ("address", "size", "requested_size", "state")
    blocks = [dict(zip(keys, block, strict=True)) for block in segment["blocks"]]
    return segment | {"segment_type": segment["type"], "is_expandable": segment["expandable"], "blocks": blocks}


class RecordedDriver(DriverMemory):
    """Answers as the recording's driver did: it refuses where the recording goes on without new memory."""

    def __init__(self, trace: Trace) -> None:
        super().__init__(None, 0)
        self.expected = [event for event in trace.events if event[0] in (*_CAME, *_WENT, Action.OOM)]
        self.allocator: DeviceCachingAllocator | None = None
        self._seen = self._done = 0

    def next(self) -> Event:
        """What the recording says of segments after all that the simulator has done so far."""
        new = self.allocator.events[self._seen :]
        self._seen += len(new)
        self._done += sum(event[0] >= Action.SEGMENT_ALLOC for event in new)
        return self.expected[self._done] if self._done < len(self.expected) else (Action.OOM, 0, 0, 0)

    def take(self, size: int) -> bool:
        return self.allocator is None or self.next()[0] in _CAME


class RecordedAddresses:
    """Puts every new segment where the recording has it."""

    def __init__(self, driver: RecordedDriver) -> None:
        self.driver = driver

    def take(self, size: int) -> int:
        return self.driver.next()[1]

    def give_back(self, address: int, size: int) -> None:
        """Recorded addresses are never used up."""


def resimulate(
    trace: Trace, conf: AllocatorConf | None = None, kind: type[DeviceCachingAllocator] = DeviceCachingAllocator
):
    """Make the trace's requests again, in a simulator that is told the driver's answers and nothing else.

    Returns:
        The simulator after the last event; its ``events`` begin with the trace's first.
    """
    driver = RecordedDriver(trace)
    allocator = kind(
        conf=trace.conf if conf is None else conf,
        addresses=RecordedAddresses(driver),
        # All recordings are of torch 2.0 to 2.11, which break ties by address.
        tie_break="address",
        history=True,
    )
    allocator.device = driver
    allocator.restore(trace.start.segments)
    driver.allocator = allocator
    by_recorded_address = dict(allocator.active)
    flushed = False
    for action, address, size, stream in trace.events:
        if action in _WENT:
            if not flushed:
                allocator.empty_cache()
            flushed = True
            continue
        if action in _CAME:
            continue  # the request that follows brings it about
        flushed = False
        if action == Action.ALLOC:
            by_recorded_address[address] = allocator.malloc(size, stream)
        elif action == Action.FREE:
            allocator.give_back(by_recorded_address[address])
        elif action == Action.FREE_COMPLETED:
            allocator.complete(by_recorded_address.pop(address))
        else:
            try:
                allocator.malloc(size, stream)
            except SimulatedOutOfMemory:
                continue
            raise AssertionError("the recording ran out of memory here")
    return allocator


def without_free_addresses(events: Iterator[Event]) -> list[Event]:
    """Events as they can be compared: an OOM event's address is the device's free memory, which was not kept."""
    return [(action, 0 if action == Action.OOM else address, size, stream) for action, address, size, stream in events]
