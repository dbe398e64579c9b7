"""``vramkit.open_snapshot``: a snapshot that torch wrote, as a profile. Knows the snapshot's keys; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from typing import Any

from ..allocator import segments_from_torch
from ..attribution.categories import attribute
from ..errors import SnapshotError, printable, shortened
from ..results.files import MAX_BYTES, TooLargeError
from ..results.profile import Profile
from ..sizes import parse_size
from ..tape.events import TORCH_ACTIONS
from .checks import ImpossibleError, check
from .labels import labelled
from .notes import notes_of
from .stacks import with_stacks
from .trace import columns_of, conf_text_of, follow_from_the_end, recording_of
from .unpickling import load_snapshot, too_large


def open_snapshot(path: str | PathLike[str], *, max_bytes: int | str = MAX_BYTES) -> Profile:
    """Open the file of ``torch.cuda.memory._dump_snapshot`` as a profile, without running anything that is in it.

    ::

        profile = vramkit.open_snapshot("oom.pickle")
        print(profile)

    Args:
        path: of the file, or of a pickle of what ``torch.cuda.memory_snapshot()`` returned. Nothing in it is trusted: a
            pickle that would run code is refused, and whoever made it, what this returns can be shown.
        max_bytes: how much the file may unpack to, in bytes or as a text: its objects, or its tables. A file of 500 MB
            needs less than 4 GiB; what reads it takes some times as much.

    Returns:
        The profile of the fullest device, with the others in it. A snapshot doesn't say what memory was for, so all of
        it is ``OTHER``, but for cuBLAS's workspaces; and it knows no steps. Where the snapshot has stacks, allocations
        have the line of the program that made them (`vramkit.profile`, ``stacks``), and the phase that torch's own
        frames say. Where its history begins in the middle, or is not there, ``is_window`` is true: the highest is the
        highest in what was kept.

    Raises:
        SnapshotError: the file is not a snapshot, is damaged, would run code, or unpacks to more.
        UsageError: ``max_bytes`` is no size.
        OSError: it can't be read.
    """
    asked = f"{printable(str(path))} was opened as a snapshot of torch's allocator"
    limit = parse_size(max_bytes)
    snapshot = load_snapshot(path, max_bytes=limit)
    try:
        check(snapshot, limit)
        devices = {*range(len(snapshot["device_traces"])), *(each.get("device", 0) for each in snapshot["segments"])}
        profiles = [profile for device in sorted(devices) if (profile := _profile(snapshot, device)) is not None]
    except TooLargeError as error:
        raise too_large(asked, limit) from error
    except Exception as error:  # of a file that nobody made with torch, any reader may stumble over anything
        found = str(error) if isinstance(error, ImpossibleError) else f"{type(error).__name__}: {shortened(str(error))}"
        raise SnapshotError(
            asked,
            f"something in it is missing or can't be: {found}",
            instead="Write it with torch.cuda.memory._dump_snapshot(path)",
        ) from error
    if not profiles:
        raise SnapshotError(
            asked,
            "it holds no memory and no history",
            instead="Call torch.cuda.memory._record_memory_history() before what is to be seen, and dump it after",
        )
    profiles.sort(key=lambda each: -each.peak_reserved)
    return replace(profiles[0], others=tuple(profiles[1:]))


def _profile(snapshot: Mapping[str, Any], device: int) -> Profile | None:
    traces = snapshot["device_traces"]
    trace = traces[device] if device < len(traces) else []
    entries = [entry for entry in trace if entry["action"] in TORCH_ACTIONS]
    last = segments_from_torch(snapshot["segments"], device=device)
    if not entries and not last:
        return None
    columns = columns_of(entries)
    skipped, followed = follow_from_the_end(columns, conf_text_of(snapshot), last)
    entries, columns = entries[skipped:], columns.after(skipped)
    recording = with_stacks(recording_of(f"cuda:{device}", columns, followed), entries, snapshot["segments"], device)
    tape = labelled(attribute(recording, [], [], []))
    tape = replace(tape, is_window=skipped > 0 or bool(len(tape.segments)))
    return Profile(tape=tape, notes=tuple(notes_of(tape, entries, len(trace), last, followed.notes)))
