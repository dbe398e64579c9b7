"""Runs one program under ``vramkit run``, in a process and a folder of its own, and judges what came of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import vramkit
from vramkit.results.profile import Profile

from . import compare, sources
from .catalogue import Program

_ROOT = Path(__file__).parents[2]
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "MPLBACKEND": "Agg",
    "PYTHONDONTWRITEBYTECODE": "1",
}
_KNOWN_NOTE = "measured on a virtual GPU"
"""How the note begins that every profile of a virtual GPU has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came of one program."""

    program: Program
    failure: str = ""
    """Why there is no profile, or how the program ended; empty: it ended well."""
    seconds: float = 0.0
    """Wall time of the process, imports included."""
    peak_allocated: int = 0
    peak_reserved: int = 0
    other: float = 0.0
    """The category OTHER at the peak, as a part of what was allocated."""
    differences: tuple[str, ...] = ()
    """Where labels are not what the program's objects say."""
    moments: int = 0
    """At how many moments they were held against each other."""
    notes: tuple[str, ...] = ()
    """What the profile says could not be known."""


def run(program: Program, *, found: Path, work: Path, gpu: str, limit: float, keep: bool) -> Row:
    """Run a program.

    Args:
        program: which.
        found: the folder of fetched repositories.
        work: a folder for everything that is written.
        gpu: as for ``vramkit run``.
        limit: seconds after which it is stopped.
        keep: judge what an earlier run left in ``work``, where there is one.
    """
    room = work / program.name.replace("/", "-").replace(" ", "-")
    files, profile, census, ended_at = (room / each for each in ("files", "profile.npz", "census.json", "ended.json"))
    if keep and ended_at.exists():
        return _judge(program, room)
    for old in (profile, census, ended_at):
        old.unlink(missing_ok=True)
    if not files.exists():
        try:
            _prepare(program, files, found)
        except (sources.SourceError, ImportError) as error:
            shutil.rmtree(files, ignore_errors=True)
            return Row(program=program, failure=str(error))
    command = [
        *(sys.executable, "-m", "vramkit", "run", "--gpu", gpu, "--max-events", "5000000", "--save", str(profile)),
        *(*program.options, str(Path(__file__).parent / "census.py"), str(census), *program.run),
    ]
    begin = time.monotonic()
    with open(room / "output.txt", "w", encoding="utf-8") as output:
        try:
            ended = subprocess.run(
                command,
                cwd=files / program.folder,
                env={**os.environ, **_OFFLINE, **program.environment, **_places(program, room)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Row(program=program, failure=f"stopped after {limit:.0f} s", seconds=limit)
    ended_at.write_text(json.dumps({"code": ended.returncode, "seconds": time.monotonic() - begin}), encoding="utf-8")
    return _judge(program, room)


def _prepare(program: Program, files: Path, found: Path) -> None:
    if program.repository:
        sources.extract(found, program.repository, program.commit, program.paths, files)
    files.mkdir(parents=True, exist_ok=True)
    for make, place in program.standins:
        make(files / place)


def _places(program: Program, room: Path) -> dict[str, str]:
    temporary = room / "temporary"
    temporary.mkdir(exist_ok=True)
    paths = [str(_ROOT)] + [str(room / "files" / program.path)] * bool(program.path)
    return {
        "PYTHONPATH": os.pathsep.join((*paths, os.environ.get("PYTHONPATH", ""))).rstrip(os.pathsep),
        "HF_HOME": str(room / "hub"),
        "YOLO_CONFIG_DIR": str(room),
        "TMPDIR": str(temporary),
    }


def _judge(program: Program, room: Path) -> Row:
    ended = json.loads((room / "ended.json").read_text(encoding="utf-8"))
    code, seconds = ended["code"], ended["seconds"]
    failure = f"exit code {code}: {_last_line(room / 'output.txt')}" if code else ""
    saved = room / "profile.npz"
    profile = vramkit.load(saved) if saved.exists() else None
    if not isinstance(profile, Profile) or not len(profile.tape.events):
        return Row(program=program, failure=failure or "it used no memory of the device", seconds=seconds)
    counted, found = compare.differences(profile, room / "census.json")
    return Row(
        program=program,
        failure=failure,
        seconds=seconds,
        peak_allocated=profile.peak_allocated,
        peak_reserved=profile.peak_reserved,
        other=profile.peak.other / max(1, profile.peak.allocated),
        differences=tuple(
            f"{text}, at {times} of {counted} moments" for text, times in Counter(map(str, found)).items()
        ),
        moments=counted,
        notes=tuple(note for note in profile.notes if not note.startswith(_KNOWN_NOTE)),
    )


def _last_line(path: Path) -> str:
    """The last line of an output that names an error."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if _is_error(line)), "")


def _is_error(line: str) -> bool:
    return line.partition(":")[0].endswith(("Error", "Exception", "Interrupt")) or ": error: " in line
