"""The measured source on CUDA: the caching allocator's own history. Knows torch's history and statistics.

The history is C++ and costs about nothing a step. A mark is put into it as *metadata*, a text that torch stamps on
every later entry of the same thread; where torch can't do that, the allocator's counters are read at each mark, which
says as exactly after how many allocations and frees the mark came, for 20 µs a mark instead of 0.3.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..allocator import SegmentState, segments_from_torch
from ..attribution.recording import NO_MODULE, Recording
from ..errors import DeviceError
from ..gpus.nccl import NCCL
from ..snapshots.stacks import with_stacks
from ..snapshots.trace import columns_of, conf_text_of, follow_trace, recording_of
from ..tape.events import TORCH_ACTIONS, Action, Ints
from ..torch_internals import allocator
from ..torch_internals.nccl import nccl_on
from ..torch_internals.versions import TIE_BREAK
from ..virtual_gpu import current
from .graphs import Graphs
from .hooks import Hooks
from .marks import Marks, padded
from .measuring import Measuring

_recordings = itertools.count(1)
_COUNTED = frozenset(name for name, action in TORCH_ACTIONS.items() if action in (Action.ALLOC, Action.FREE))
_TRIES = 3
_Counts = tuple[tuple[int, int], ...]
"""Of each device: allocations plus frees since the process began, and allocations that failed."""


@dataclass
class CudaHistory:
    """Records every CUDA device of the process.

    Args:
        max_events: how many of the last entries torch keeps for each device.
        use_metadata: mark by metadata where torch can; False: by the allocator's counters, always.
        stacks: the history has the stack of each allocation, too: Python's, and where torch can, C++'s, which names the
            operators.
    """

    max_events: int
    use_metadata: bool = True
    stacks: bool = False
    marks: Marks = field(init=False)
    hooks: Hooks = field(init=False)

    def __post_init__(self) -> None:
        if torch.cuda.memory.get_allocator_backend() != "native":
            raise DeviceError(
                "The memory of a CUDA device was to be recorded",
                f"the allocator is {torch.cuda.memory.get_allocator_backend()!r}",
                "only torch's own caching allocator keeps a history",
                "Leave backend:cudaMallocAsync out of PYTORCH_CUDA_ALLOC_CONF",
            )
        self._counts: list[_Counts] = []
        self._metadata = self.use_metadata and allocator.HAS_METADATA
        if self._metadata and allocator.set_metadata is not None:
            # Threads keep what an earlier recording stamped them with, and programs may have metadata of their own. A
            # text of up to 15 letters costs torch no memory of its own in every entry.
            name = f"v{next(_recordings)}"
            self.marks = Marks(allocator.set_metadata, stamps=True, stamped=allocator.get_metadata, name=name)
        else:
            self.marks = Marks(lambda _number: self._counts.append(self._count()))
        self._graphs = Graphs(self.marks)
        self._measuring = Measuring(self.marks)
        self.hooks = Hooks(
            self.marks,
            torch.Tensor.data_ptr,
            locate_held=torch.Tensor.data_ptr,
            allocated=_allocated,
            follows_all=current() is not None,
            notes_lines=self.stacks,
        )

    def start(self, stack: ExitStack) -> None:
        """Begin to record: history first, then the hooks.

        Args:
            stack: ends the recording when it is left: the hooks are detached, the history set back as it was.
        """
        torch.cuda.init()  # type: ignore[no-untyped-call] # torch's
        self._devices = range(torch.cuda.device_count())
        self._was_on = allocator.is_history_on()
        if not self._was_on:
            stack.callback(allocator.record_history, None)
            # As keywords this call differs between torch versions; this much every one has.
            context = "alloc" if self.stacks else None
            kind = "all" if self.stacks and allocator.HAS_NATIVE_STACKS else "python"
            allocator.record_history("all", context=context, stacks=kind, max_entries=self.max_events)
        if self._metadata and allocator.set_metadata is not None and allocator.get_metadata is not None:
            stack.callback(allocator.set_metadata, allocator.get_metadata())
            allocator.set_metadata("")
        self._first = self._read()
        self._old_peaks = [torch.cuda.max_memory_allocated(device) for device in self._devices]
        self._counts = [self._first.after]
        self._graphs.install(stack)
        self.hooks.install(stack)
        self._measuring.install(stack)

    def stop(self, error: BaseException | None = None) -> None:
        """Look for the last time, before the stack detaches everything.

        Args:
            error: ended the program.
        """
        self.hooks.finish(error)
        self._was_off = not allocator.is_history_on()
        self._last = self._read()
        self._outside = [_outside(device) for device in self._devices]
        self._nccl = [_nccl(device) for device in self._devices]

    def recordings(self) -> list[Recording]:
        """What was recorded on each device in use; to be called once the recording has ended."""
        return [
            replace(recording, nccl=self._nccl[device])
            for device in self._devices
            if (recording := self._recording(device, *self._outside[device]))
        ]

    def _read(self) -> _Reading:
        """Take a snapshot, and find how much had happened by then.

        Python's collector may run at any moment, and so may other threads: what is freed between the snapshot and the
        count is in one and not in the other. Few things happen twice in a row.
        """
        for _ in range(_TRIES):
            before = self._count()
            with allocator.quick_symbols() if self.stacks else nullcontext():
                snapshot = allocator.snapshot()
            after = self._count()
            if before == after:
                break
        return _Reading(snapshot, before, after)

    def _count(self) -> _Counts:
        found = []
        for device in self._devices:
            stats = torch.cuda.memory_stats_as_nested_dict(device)
            if not stats:  # in a worker that was forked, which has no CUDA
                return ()
            count = stats["allocation"]["all"]
            found.append((count["allocated"] + count["freed"], stats["num_ooms"]))
        return tuple(found)

    def _recording(self, device: int, outside: int, capacity: int) -> Recording | None:
        first, last = self._first.segments(device), self._last.segments(device)
        # At least so many: what came between a snapshot and a count is in doubt, and no reason to say that it was lost.
        happened = self._last.before[device][0] - self._first.after[device][0]
        entries, lost = _since(self._last.trace(device), len(self._first.trace(device)), happened)
        if not entries and not first and not lost:
            return None
        columns = columns_of(entries)
        notes = []
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
        followed = follow_trace(columns, conf_text_of(self._last.snapshot), None if lost else first, last)
        count = len(entries)
        recording = recording_of(f"cuda:{device}", columns, followed)
        if self.stacks:
            recording = with_stacks(recording, entries, self._last.snapshot["segments"], device)
            if self._was_on and count and (recording.stack is None or (recording.stack < 0).all()):
                notes.append(
                    "No source lines: the allocator's history was on before the block, and keeps no stacks. Leave out "
                    'torch.cuda.memory._record_memory_history, or give it context="alloc".'
                )
        numbers = len(self.marks.kept) + 1
        if self._metadata:
            mark, line, at_module = _stamps(entries, self.marks.lines.by_prefix())
            reached = np.maximum.accumulate(mark) if count else mark
            position = np.searchsorted(reached, np.arange(numbers)).astype(np.int64)
            position[position == 0] = -1 if lost else 0
            recording = replace(recording, line=line, at_module=at_module)
        else:
            counts = np.isin(columns.action, (Action.ALLOC, Action.FREE, Action.OOM))
            counter = (
                np.array([sum(each[device]) for each in padded(self._counts, numbers)], np.int64)
                - sum(self._last.before[device])
                + int(counts.sum())
            )
            position = _positions(counter, columns.action, counts)
            if len(self.marks.lines.met()) > 1:
                notes.append(
                    "Several threads ran modules or optimizers, and this version of torch does not say which thread an "
                    "allocation was made in: where they ran at once, it may be labelled as another's. torch 2.11 does."
                )
            mark = np.searchsorted(position, np.arange(count), side="right").astype(np.int64) - 1
            position[counter < 0] = -1
        return replace(
            recording,
            mark=mark,
            position=position,
            tie_break=TIE_BREAK,
            workspace_sizes=allocator.workspace_sizes(),
            outside=outside,
            capacity=capacity,
            lost=lost,
            notes=[*notes, *followed.notes, *filter(None, [self._graphs.note()])],
        )


@dataclass(frozen=True)
class _Reading:
    """The allocator at a moment."""

    snapshot: Mapping[str, Any]
    """torch's."""
    before: _Counts
    """What had happened just before the snapshot."""
    after: _Counts
    """And just after it."""

    def segments(self, device: int) -> list[SegmentState]:
        """What the allocator held."""
        return list(segments_from_torch(self.snapshot["segments"], device=device))

    def trace(self, device: int) -> Sequence[dict[str, Any]]:
        """The entries of its history that torch had, oldest first."""
        traces: Sequence[Sequence[dict[str, Any]]] = self.snapshot["device_traces"]
        return traces[device] if device < len(traces) else []


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
    """Index of the first event after so many allocations, frees and failures, for each mark."""
    after = np.concatenate([np.zeros(1, np.int64), np.flatnonzero(counts) + 1])
    # A free is two entries where no other stream uses the block, and the counters move at the first.
    completes = np.append(action == Action.FREE_COMPLETED, False)
    after += completes[after] & (np.append(action, 0)[after - 1] == Action.FREE)
    return after[np.clip(counter, 0, len(after) - 1)]


def _stamps(entries: Sequence[dict[str, Any]], lines: Mapping[str, int]) -> tuple[Ints, Ints, npt.NDArray[np.int32]]:
    """The mark, the line and the backward's module that the metadata of each entry name; 0, 0 and none where none do.

    Args:
        entries: of a trace.
        lines: number of each line, by what its texts begin with.
    """
    mark, line = np.zeros(len(entries), np.int64), np.zeros(len(entries), np.int64)
    at_module = np.full(len(entries), NO_MODULE, np.int32)
    for i, entry in enumerate(entries):
        prefix, _, text = entry.get("user_metadata", "").partition(":")
        if prefix in lines:
            module, _, number = text.rpartition("@")
            mark[i], line[i] = int(number), lines[prefix]
            if module:
                at_module[i] = int(module)
    return mark, line, at_module


def _allocated() -> int:
    """``memory_allocated()`` of this thread's device; torch's own function makes 60 more figures of it on the way.

    0 in a forked child, a loader's worker say: it has no device.
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # torch's
        return 0
    return int(torch.cuda.memory_stats_as_nested_dict()["allocated_bytes"]["all"]["current"])


def _nccl(device: int) -> NCCL | None:
    """What NCCL has on the device; None: nothing. A virtual one has only as many communicators."""
    if not allocator.has_context(device):
        return None
    gpu = current()
    if gpu is None:
        return nccl_on(device)
    return NCCL(communicators=gpu.communicators) if gpu.communicators else None


def _outside(device: int) -> tuple[int, int]:
    """Bytes in use on the device beside this allocator's, and the device's capacity; zeros where nothing runs."""
    if not allocator.has_context(device):  # to ask how much is free would make a context, of hundreds of MiB
        return 0, 0
    free, total = torch.cuda.mem_get_info(device)
    return max(0, total - free - torch.cuda.memory_reserved(device)), total
