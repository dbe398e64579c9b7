"""A profile as a baseline, to be kept beside a program's tests: all that a comparison reads, and nothing else.

Times, addresses and folders differ from run to run and from machine to machine, and say nothing of a program. Knows
tapes and files; judges nothing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import UsageError
from ..loading import load
from ..results.profile import Profile
from ..tape.events import Tape
from ..tape.stacks import STACK, Stacks


def keep(result: Profile, path: Path, root: Path) -> None:
    """Write a baseline, in a folder that is made if it is not there.

    Args:
        result: a profile.
        path: of the file.
        root: files below this folder are named from there on.

    Raises:
        OSError: it can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    compact(result, root).save(path)


def open_baseline(path: Path) -> Profile:
    """The profile in a baseline, or in any file of a profile's.

    Raises:
        UsageError: there is no such file, or it is of an estimate.
        SnapshotError: it can't be read.
    """
    if not path.exists():
        raise UsageError(
            "A baseline was to be compared with",
            f"there is no file {path}",
            instead="Keep one first: vramkit run --save FILE",
        )
    found = load(path)
    if not isinstance(found, Profile):
        raise UsageError(
            f"{path} was to be compared with",
            f"it is of {type(found).__name__.lower()}",
            "What is measured is held against what was measured",
            "Keep a profile as the baseline",
        )
    return found


def compact(result: Profile, root: Path) -> Profile:
    """A profile with all that a comparison reads."""
    versions = {name: text for name, text in result.versions.items() if name in ("torch", "vramkit")}
    return replace(
        result,
        tape=_compact(result.tape, str(root).rstrip("/") + "/"),
        outside=0,
        versions=versions,
        notes=(),
        others=tuple(compact(each, root) for each in result.others),
    )


def _compact(tape: Tape, root: str) -> Tape:
    events, allocations, segments = tape.events.copy(), tape.allocations.copy(), tape.segments.copy()
    events["time"] = 0
    for table in (events, allocations, segments):
        table["address"] = 0
    stacks = None if tape.stacks is None else _lines_alone(tape.stacks, root)
    return replace(tape, events=events, allocations=allocations, segments=segments, stacks=stacks)


def _lines_alone(stacks: Stacks, root: str) -> Stacks:
    """Of each stack the line that reports show."""
    used, of = np.unique(stacks.lines, return_inverse=True)
    first = int((used < 0).any())  # -1 stands for none
    frames = [stacks.frames[line] for line in used[first:].tolist()]
    return Stacks(
        frames=tuple(replace(frame, file=frame.file.removeprefix(root)) for frame in frames),
        table=np.array([(number, -1) for number in range(len(frames))], STACK),
        of=(of - first).astype(np.int32),
    )
