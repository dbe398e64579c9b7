"""``vramkit.open_snapshot``: a snapshot that torch wrote, as a profile. Knows the snapshot's keys; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

from ..allocator import segments_from_torch
from ..attribution.categories import attribute
from ..errors import SnapshotError, printable, shortened, shown
from ..gpus import CUBLAS_WORKSPACE
from ..results.files import MAX_BYTES, TooLargeError
from ..results.profile import Profile
from ..sizes import parse_size
from ..tape.events import TORCH_ACTIONS, Category, Tape
from ..tape.source_lines import SourceLine
from .checks import ImpossibleError, check
from .trace import columns_of, conf_text_of, follow_trace, recording_of
from .unpickling import load_snapshot, too_large

_MAX_PATH = 4096
_MAX_NAME = 200


def open_snapshot(path: str | PathLike[str], *, max_bytes: int | str = MAX_BYTES) -> Profile:
    """Open the file of ``torch.cuda.memory._dump_snapshot`` as a profile, without running anything that is in it.

    ::

        profile = vramkit.open_snapshot("oom.pickle")
        print(profile)

    Args:
        path: of the file. Nothing in it is trusted: a pickle that would run code is refused, and whoever made it, what
            this returns can be shown.
        max_bytes: how much the file may unpack to, in bytes or as a text: its objects, or its tables. A file of 500 MB
            needs less than 4 GiB; what reads it takes some times as much.

    Returns:
        The profile of the fullest device, with the others in it. A snapshot doesn't say what memory was for, so all of
        it is ``OTHER``, but for cuBLAS's workspaces, which have a size of their own. Where the snapshot has stacks,
        allocations are named by the innermost line of Python that isn't torch's.

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
        profiles = [
            profile
            for device in range(len(snapshot["device_traces"]))
            if (profile := _profile(snapshot, device)) is not None
        ]
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
    entries = [entry for entry in snapshot["device_traces"][device] if entry["action"] in TORCH_ACTIONS]
    last = segments_from_torch(snapshot["segments"], device=device)
    if not entries and not last:
        return None
    columns = columns_of(entries)
    followed = follow_trace(columns, conf_text_of(snapshot), None, last)
    # A snapshot doesn't say of which card it is. Hopper's workspace is left out: tensors often have its size, 32 MiB.
    recording = recording_of(f"cuda:{device}", columns, followed)
    recording = replace(recording, workspace_sizes=frozenset({CUBLAS_WORKSPACE}))
    notes = ["A snapshot says where memory was, not what it was for: profile with vramkit.profile to see categories."]
    if not entries:
        notes.append("It has no history, so this is one moment only.")
    return Profile(tape=_unlabelled(attribute(recording, [], [], []), entries), notes=(*notes, *followed.notes))


def _unlabelled(tape: Tape, entries: Sequence[Mapping[str, Any]]) -> Tape:
    """A tape whose categories claim no more than a snapshot knows."""
    table = tape.allocations.copy()
    table["category"][table["category"] != Category.WORKSPACE] = Category.OTHER
    names: dict[str, int] = {}
    lines = _Lines()
    for row, born in enumerate(table["born"]):
        if born >= 0 and (name := lines.innermost(entries[born].get("frames") or [])):
            table["name"][row] = names.setdefault(name, len(names))
    return replace(tape, allocations=table, names=tuple(names))


class _Lines:
    """Names stacks by a line. Many entries can have one stack, and many stacks one frame: each is read once."""

    def __init__(self) -> None:
        self._of_stack: dict[int, str] = {}  # by id; the snapshot keeps them all alive
        self._of_frame: dict[int, str] = {}

    def innermost(self, frames: Sequence[object]) -> str:
        """The innermost line of Python outside torch: ``"train.py:31 step"``; empty where there is none."""
        found = self._of_stack.get(id(frames))
        if found is None:
            found = self._of_stack[id(frames)] = next(filter(None, map(self._line, frames)), "")
        return found

    def _line(self, frame: object) -> str:
        found = self._of_frame.get(id(frame))
        if found is None:
            found = self._of_frame[id(frame)] = _line(frame)
        return found


def _line(frame: object) -> str:
    if not isinstance(frame, dict):
        raise ImpossibleError(f"a frame can't be {shown(frame)}")
    file, line, name = frame.get("filename"), frame.get("line"), frame.get("name")
    if not isinstance(file, str) or not file.endswith(".py") or len(file) > _MAX_PATH:
        return ""
    parts = file.replace("\\", "/").split("/")
    if "torch" in parts:
        return ""
    number = line if isinstance(line, int) else 0
    return str(SourceLine(file=parts[-1], number=number, function=name[:_MAX_NAME] if isinstance(name, str) else "?"))
