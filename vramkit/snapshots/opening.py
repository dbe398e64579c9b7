"""``vramkit.open_snapshot``: a snapshot that torch wrote, as a profile. Knows the snapshot's keys; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

from ..allocator import NO_POOL, SegmentState, segments_from_torch
from ..attribution.categories import attribute
from ..errors import SnapshotError, printable
from ..gpus import CUBLAS_WORKSPACE
from ..results.profile import Profile
from ..tape.events import TORCH_ACTIONS, Category, Tape
from .trace import columns_of, conf_text_of, follow_trace, recording_of
from .unpickling import load_snapshot

_LARGEST_ID = (1 << 31) - 1  # of a private pool: the tables keep both of its numbers in 32 bits


def open_snapshot(path: str | PathLike[str]) -> Profile:
    """Open the file of ``torch.cuda.memory._dump_snapshot`` as a profile, without running anything that is in it.

    ::

        profile = vramkit.open_snapshot("oom.pickle")
        print(profile)

    Args:
        path: of the file. Nothing in it is trusted: a pickle that would run code is refused.

    Returns:
        The profile of the fullest device, with the others in it. A snapshot doesn't say what memory was for, so all of
        it is ``OTHER``, but for cuBLAS's workspaces, which have a size of their own. Where the snapshot has stacks,
        allocations are named by the innermost line of Python that isn't torch's.

    Raises:
        SnapshotError: the file is not a snapshot, is damaged, or would run code.
        OSError: it can't be read.
    """
    snapshot = load_snapshot(path)
    try:
        profiles = [
            profile
            for device in range(len(snapshot["device_traces"]))
            if (profile := _profile(snapshot, device)) is not None
        ]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise SnapshotError(
            f"{path} was opened as a snapshot of torch's allocator",
            f"something in it is missing or can't be: {type(error).__name__}: {printable(str(error))}",
            instead="Write it with torch.cuda.memory._dump_snapshot(path)",
        ) from error
    if not profiles:
        raise SnapshotError(
            f"{path} was opened as a snapshot of torch's allocator",
            "it holds no memory and no history",
            instead="Call torch.cuda.memory._record_memory_history() before what is to be seen, and dump it after",
        )
    profiles.sort(key=lambda each: -each.peak_reserved)
    return replace(profiles[0], others=tuple(profiles[1:]))


def _profile(snapshot: Mapping[str, Any], device: int) -> Profile | None:
    entries = [entry for entry in snapshot["device_traces"][device] if entry["action"] in TORCH_ACTIONS]
    last = segments_from_torch(snapshot["segments"], device=device)
    if not entries and not last:
        return None
    _check_numbers(entries, last)
    columns = columns_of(entries)
    followed = follow_trace(columns, conf_text_of(snapshot), None, last)
    # A snapshot doesn't say of which card it is. Hopper's workspace is left out: tensors often have its size, 32 MiB.
    recording = recording_of(f"cuda:{device}", columns, followed)
    recording = replace(recording, workspace_sizes=frozenset({CUBLAS_WORKSPACE}))
    notes = ["A snapshot says where memory was, not what it was for: profile with vramkit.profile to see categories."]
    if not entries:
        notes.append("It has no history, so this is one moment only.")
    return Profile(tape=_unlabelled(attribute(recording, [], [], []), entries), notes=(*notes, *followed.notes))


def _check_numbers(entries: Sequence[Mapping[str, Any]], segments: Sequence[SegmentState]) -> None:
    """A size or a private pool that can't be would be shown as if it could."""
    sizes = [entry["size"] for entry in entries]
    for segment in segments:
        sizes.append(segment.size)
        sizes += [size for block in segment.blocks for size in (block.size, block.requested)]
    for size in sizes:
        if type(size) is not int or size < 0:
            raise ValueError(f"the size {size!r}")
    pools = [entry.get("pool_id", NO_POOL) for entry in entries] + [segment.pool for segment in segments]
    for major, minor in pools:
        for number in (major, minor):
            if type(number) is not int or not 0 <= number <= _LARGEST_ID:
                raise ValueError(f"the private pool {(major, minor)!r}")


def _unlabelled(tape: Tape, entries: Sequence[Mapping[str, Any]]) -> Tape:
    """A tape whose categories claim no more than a snapshot knows."""
    table = tape.allocations.copy()
    table["category"][table["category"] != Category.WORKSPACE] = Category.OTHER
    names: dict[str, int] = {}
    for row, born in enumerate(table["born"]):
        if born >= 0 and (name := _line(entries[born].get("frames") or ())):
            table["name"][row] = names.setdefault(name, len(names))
    return replace(tape, allocations=table, names=tuple(names))


def _line(frames: Sequence[Mapping[str, Any]]) -> str:
    """The innermost line of Python outside torch: ``"train.py:31 step"``; empty where there is none."""
    for frame in frames:
        file = str(frame.get("filename", ""))
        parts = file.replace("\\", "/").split("/")
        if file.endswith(".py") and "torch" not in parts:
            return f"{parts[-1]}:{frame.get('line')} {frame.get('name')}"
    return ""
