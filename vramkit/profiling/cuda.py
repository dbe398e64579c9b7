"""The measured source on CUDA: the caching allocator's own history. Knows torch's history and statistics.

The history is C++ and costs about nothing a step. A mark is put into it as *metadata*, a text that torch stamps on
every later entry of the same thread; where torch can't do that, the allocator's counters are read at each mark, which
says as exactly after how many allocations and frees the mark came, for 20 µs a mark instead of 0.3.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..allocator import SegmentState, segments_from_torch
from ..attribution.recording import NO_MODULE, Recording
from ..errors import DeviceError
from ..gpus import CUBLAS_WORKSPACE, CUBLAS_WORKSPACE_HOPPER
from ..snapshots.trace import columns_of, conf_text_of, follow_trace, recording_of
from ..tape.events import TORCH_ACTIONS, Action, Ints
from .marks import Marks

_recordings = itertools.count(1)
_COUNTED = ("alloc", "free_requested")  # what torch's statistics count as "allocated" and "freed"


@dataclass
class CudaHistory:
    """Records every CUDA device of the process from ``start()`` to ``stop()``.

    Args:
        max_events: how many of the last entries torch keeps for each device.
        use_metadata: mark by metadata where torch can; False: by the allocator's counters, always.
    """

    max_events: int
    use_metadata: bool = True
    marks: Marks = field(init=False)

    def __post_init__(self) -> None:
        if torch.cuda.memory.get_allocator_backend() != "native":
            raise DeviceError(
                "The memory of a CUDA device was to be recorded",
                f"the allocator is {torch.cuda.memory.get_allocator_backend()!r}",
                "only torch's own caching allocator keeps a history",
                "Leave backend:cudaMallocAsync out of PYTORCH_CUDA_ALLOC_CONF",
            )
        self._metadata = self.use_metadata and _has_metadata()
        self._counts: list[tuple[int, ...]] = []
        if self._metadata:
            # Threads keep what an earlier recording stamped them with, and programs may have metadata of their own. A
            # text of up to 15 letters costs torch no memory of its own in every entry.
            self._prefix = f"v{next(_recordings)}:"
            self.marks = Marks(
                torch._C._cuda_setMemoryMetadata, torch.Tensor.data_ptr, stamps=True, prefix=self._prefix
            )
        else:
            self.marks = Marks(lambda _number: self._counts.append(self._count()), torch.Tensor.data_ptr)

    def start(self) -> None:
        """Begin to record: history first, then the hooks."""
        torch.cuda.init()  # type: ignore[no-untyped-call] # torch's
        self._devices = range(torch.cuda.device_count())
        self._was_on = torch._C._cuda_isHistoryEnabled()
        if not self._was_on:
            # As keywords this call differs between torch versions; this much every one has.
            torch.cuda.memory._record_memory_history("all", context=None, stacks="python", max_entries=self.max_events)
        if self._metadata:
            self._old_metadata = torch._C._cuda_getMemoryMetadata()
            torch._C._cuda_setMemoryMetadata("")
        snapshot = torch._C._cuda_memorySnapshot(None)
        self._first = [segments_from_torch(snapshot["segments"], device=device) for device in self._devices]
        self._skip = [len(trace) for trace in snapshot["device_traces"]]
        self._base = self._count()
        self._old_peaks = [torch.cuda.max_memory_allocated(device) for device in self._devices]
        self._counts = [self._base]
        try:
            self.marks.install()
        except BaseException:
            self.marks.abandon()
            self._restore()
            raise

    def stop(self) -> list[Recording]:
        """Detach everything, set the history back as it was, and hand over what was recorded on each device in use."""
        try:
            self.marks.remove()
            self._was_off = not torch._C._cuda_isHistoryEnabled()
            snapshot = torch._C._cuda_memorySnapshot(None)
            counts = self._count()
            outside = [_outside(device) for device in self._devices]
        finally:
            self._restore()
        return [
            recording
            for device in self._devices
            if (recording := self._recording(device, snapshot, counts[device], *outside[device])) is not None
        ]

    def _restore(self) -> None:
        if not self._was_on:
            torch.cuda.memory._record_memory_history(None)
        if self._metadata:
            torch._C._cuda_setMemoryMetadata(self._old_metadata)

    def _count(self) -> tuple[int, ...]:
        """Allocations plus frees since the process began, for each device."""
        return tuple(
            (count := torch._C._cuda_memoryStats(device)["allocation"]["all"])["allocated"] + count["freed"]
            for device in self._devices
        )

    def _recording(
        self, device: int, snapshot: dict[str, Any], counted: int, outside: int, capacity: int
    ) -> Recording | None:
        first = self._first[device]
        trace = snapshot["device_traces"][device] if device < len(snapshot["device_traces"]) else []
        entries, lost = _since(trace, self._skip[device], counted - self._base[device])
        if not entries and not first and not lost:
            return None
        columns = columns_of(entries)
        counts = np.isin(columns.action, (Action.ALLOC, Action.FREE))
        notes = []
        last = segments_from_torch(snapshot["segments"], device=device)
        if not lost and not _leads_to(first, last, columns.action, columns.size):
            lost = 1
            notes.append(
                "Some of the allocator's history is missing: something inside the block set its counters back."
            )
        elif lost and self._was_off:
            notes.append(
                f"The history of {lost:,} allocations and frees on cuda:{device} is gone: something inside the block "
                "called torch.cuda.memory._record_memory_history(None)."
            )
        elif lost:
            notes.append(
                f"{lost:,} allocations and frees on cuda:{device} came before the last {self.max_events:,} events and "
                "were not kept: the profile covers what came after. Raise max_events, or profile fewer steps."
            )
        if lost:
            peak = torch.cuda.max_memory_allocated(device)
            if peak > self._old_peaks[device]:
                notes.append(f"The highest memory_allocated() of the whole block was {peak:,} bytes.")
        followed = follow_trace(columns, conf_text_of(snapshot), None if lost else first, last)
        count = len(entries)
        recording = recording_of(f"cuda:{device}", columns, followed)
        at_module = recording.at_module
        if self._metadata:
            mark, at_module = _stamps(entries, self._prefix)
            reached = np.maximum.accumulate(mark) if count else mark
            position = np.searchsorted(reached, np.arange(len(self.marks.kept) + 1)).astype(np.int64)
            position[position == 0] = -1 if lost else 0
        else:
            counter = (
                np.array([each[device] for each in self._counts[: len(self.marks.kept) + 1]], np.int64)
                - counted
                + int(counts.sum())
            )
            position = _positions(counter, columns.action, counts)
            mark = np.searchsorted(position, np.arange(count), side="right").astype(np.int64) - 1
            position[counter < 0] = -1
        return replace(
            recording,
            mark=mark,
            at_module=at_module,
            position=position,
            workspace_sizes=_workspace_sizes(),
            outside=outside,
            capacity=capacity,
            lost=lost,
            notes=[*notes, *followed.notes],
        )


def _has_metadata() -> bool:
    return hasattr(torch._C, "_cuda_setMemoryMetadata") and hasattr(torch.cuda.memory, "_set_memory_metadata")


def _since(trace: Sequence[dict[str, Any]], skip: int, happened: int) -> tuple[list[dict[str, Any]], int]:
    """The entries that a recording made itself, and how many allocations and frees of its own are missing.

    Args:
        trace: all that torch kept, oldest first.
        skip: how many entries were there when the recording began.
        happened: allocations plus frees since, by the allocator's own counters.
    """
    own = [entry for entry in trace[skip:] if entry["action"] in TORCH_ACTIONS]
    if happened <= sum(entry["action"] in _COUNTED for entry in own):
        return own, 0
    # The ring of entries came round: what was there before has gone, in whole or in part.
    entries = [entry for entry in trace if entry["action"] in TORCH_ACTIONS]
    counted = [i for i, entry in enumerate(entries) if entry["action"] in _COUNTED]
    if len(counted) >= happened:
        return entries[counted[len(counted) - happened] :], 0
    return entries, happened - len(counted)


def _leads_to(
    first: Sequence[SegmentState], last: Sequence[SegmentState], action: npt.NDArray[np.uint8], size: Ints
) -> bool:
    """Whether what was reserved at the start, with all that came and went, is what is reserved at the end."""
    came = int(size[np.isin(action, (Action.SEGMENT_ALLOC, Action.SEGMENT_MAP))].sum())
    went = int(size[np.isin(action, (Action.SEGMENT_FREE, Action.SEGMENT_UNMAP))].sum())
    return sum(each.size for each in first) + came - went == sum(each.size for each in last)


def _positions(counter: Ints, action: npt.NDArray[np.uint8], counts: npt.NDArray[np.bool_]) -> Ints:
    """Index of the first event after so many allocations and frees, for each mark."""
    after = np.concatenate([np.zeros(1, np.int64), np.flatnonzero(counts) + 1])
    # A free is two entries where no other stream uses the block, and the counters move at the first.
    completes = np.append(action == Action.FREE_COMPLETED, False)
    after += completes[after] & (np.append(action, 0)[after - 1] == Action.FREE)
    return after[np.clip(counter, 0, len(after) - 1)]


def _stamps(entries: Sequence[dict[str, Any]], prefix: str) -> tuple[Ints, Any]:
    """The mark and the backward's module that the metadata of each entry name."""
    mark = np.zeros(len(entries), np.int64)
    at_module = np.full(len(entries), NO_MODULE, np.int32)
    skip = len(prefix)
    for i, entry in enumerate(entries):
        text = entry.get("user_metadata", "")
        if text.startswith(prefix):
            module, _, number = text[skip:].rpartition("@")
            mark[i] = int(number)
            if module:
                at_module[i] = int(module)
    return mark, at_module


def _workspace_sizes() -> frozenset[int]:
    """What cuBLAS asks torch for, once for each handle and stream; cuBLASLt shares it."""
    if hasattr(torch._C, "_cuda_getCublasWorkspaceSize"):
        return frozenset({int(torch._C._cuda_getCublasWorkspaceSize())})
    return frozenset({CUBLAS_WORKSPACE, CUBLAS_WORKSPACE_HOPPER})


def _outside(device: int) -> tuple[int, int]:
    """Bytes in use on the device beside this allocator's, and the device's capacity; zeros where nothing runs."""
    has_context = vars(torch._C)["_cuda_hasPrimaryContext"]
    if not has_context(device):  # to ask how much is free would make a context, of hundreds of MiB
        return 0, 0
    free, total = torch.cuda.mem_get_info(device)
    return max(0, total - free - torch.cuda.memory_reserved(device)), total
