"""The processes that a script starts, as files in a folder: what each is told, what each leaves, what became of them.

A process that begins to use CUDA writes down that it does, and at its end its profile. Knows files and processes; what
is measured, ``measuring`` beside this file knows. Loads no torch.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import VramkitError, shortened
from ..ranks.place import Job, Place
from ..virtual_gpu.activation import RUN_ENVIRONMENT

if TYPE_CHECKING:
    from ..results.profile import Profile

_TASK = "task"
_MEETING = "meeting"
_SITE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "children")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What each process of a script is told."""

    folder: str
    """Where it leaves what it has measured."""
    max_events: int
    steps: int | None
    """After how many training steps it ends."""
    plays_ranks: bool = False
    """Whether ranks of a job are played on virtual GPUs."""
    mirrored_of: int | None = None
    """Ranks of the job, of which some are absent; None: they are all there."""
    together: Sequence[int] = ()
    """Those that are played at the same time; empty: several, each alone."""
    stacks: bool = False
    """Whether it records where allocations were made."""

    def bequeath(self) -> None:
        """Tell every process that this one starts from now on."""
        Path(self.folder, _TASK).write_text(json.dumps(asdict(self)), encoding="utf-8")
        os.environ[RUN_ENVIRONMENT] = self.folder
        others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != _SITE]
        os.environ["PYTHONPATH"] = os.pathsep.join([_SITE, *others])

    @property
    def is_placed(self) -> bool:
        """Whether processes have ranks which no launcher gave them."""
        return bool(self.together) or self.mirrored_of is not None

    def job(self) -> Job | None:
        """The job whose absent ranks are mirrors of those that are played; None: there is none."""
        if self.mirrored_of is None:
            return None
        place = Place.of(os.environ)
        played = tuple(self.together)
        if place is not None and place.rank not in played:  # each is alone, or a launcher of the script's gave it
            played = (place.rank,)
        return Job(world_size=self.mirrored_of, played=played or (0,), meeting=str(Path(self.folder, _MEETING)))

    @classmethod
    def inherited(cls) -> Task | None:
        """What this process was told; None: nothing, or nobody waits any more."""
        folder = os.environ.get(RUN_ENVIRONMENT)
        try:
            return None if folder is None else cls(**json.loads(Path(folder, _TASK).read_text(encoding="utf-8")))
        except OSError:
            return None


def refuse() -> None:
    """Let this process not be measured for the one that started it: it measures itself."""
    sys.meta_path[:] = [each for each in sys.meta_path if not hasattr(each, "is_of_vramkit_run")]


class Entry:
    """What this process leaves in the folder. A folder that is gone takes nothing: nobody waits for it."""

    def __init__(self, folder: str) -> None:
        self._path = Path(folder) / f"{os.getpid()}-{secrets.token_hex(4)}"
        place = Place.of(os.environ)
        job = {} if place is None else {"rank": place.rank, "world_size": place.world_size}
        self._write(".json", json.dumps({"pid": os.getpid(), "command": _command(), **job}))

    def leave(self, profile: Profile) -> None:
        """What was measured."""
        with suppress(OSError):
            profile.save(self._path.with_suffix(".npz"))

    def fail(self, why: str) -> None:
        """Why there is nothing."""
        self._write(".failed", why)

    def _write(self, suffix: str, text: str) -> None:
        with suppress(OSError):
            beside = self._path.with_suffix(".part")
            beside.write_text(text, encoding="utf-8")
            beside.replace(self._path.with_suffix(suffix))


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process that used CUDA."""

    pid: int
    command: str
    """What it runs, in one line."""
    profile: Profile | None = None
    rank: int | None = None
    """Its rank in a distributed job; None: a launcher gave it none."""
    world_size: int = 1
    """Ranks of the job."""
    why: str = ""
    """Why it has no profile, as a sentence goes on; empty: it has one."""


def found_in(folder: str) -> list[Process]:
    """What the processes that used CUDA have left so far, but for this one."""
    found = [_read(path) for path in sorted(Path(folder).glob("*.json"))]
    known = {os.getpid(), *(each.pid for each in found)}
    # The virtual GPU itself tells of each process, in a file of this name.
    others = [path for path in sorted(Path(folder).glob("*.used")) if int(path.stem) not in known]
    why = "did not read vramkit's sitecustomize"
    return found + [Process(pid=int(path.stem), command=_command_line(path), why=why) for path in others]


def running_in(folder: str) -> list[int]:
    """The processes that used CUDA, have left nothing yet, and still run; but for this one."""
    left = {path.stem.partition("-")[0] for suffix in ("npz", "failed") for path in Path(folder).glob(f"*.{suffix}")}
    begun = {path.stem.partition("-")[0] for suffix in ("json", "used") for path in Path(folder).glob(f"*.{suffix}")}
    return [pid for pid in map(int, begun - left) if pid != os.getpid() and _is_running(pid)]


def wait_for(folder: str, seconds: float) -> None:
    """Wait until none of the processes that used CUDA is running any more, or for a time."""
    end = time.monotonic() + seconds
    while running_in(folder) and time.monotonic() < end:
        time.sleep(0.02)


def _read(path: Path) -> Process:
    from ..loading import load
    from ..results.profile import Profile

    start = json.loads(path.read_text(encoding="utf-8"))
    process = Process(
        pid=int(start["pid"]),
        command=shortened(str(start["command"])),
        rank=start.get("rank"),
        world_size=start.get("world_size", 1),
    )
    is_running = _is_running(process.pid)  # asked first: what it leaves at its end is there by then
    saved, failed = path.with_suffix(".npz"), path.with_suffix(".failed")
    try:
        if saved.exists():
            profile = load(saved)
            assert isinstance(profile, Profile)
            return replace(process, profile=profile)
    except (OSError, VramkitError) as error:
        return replace(process, why=f"can't be read: {error}")
    if failed.exists():
        return replace(process, why=failed.read_text(encoding="utf-8"))
    return replace(process, why="was still running" if is_running else "was killed, or ended by os._exit()")


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"  # ended, and nobody has asked for its status
    except OSError:
        return not os.path.isdir("/proc/self") and _answers(pid)


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _command() -> str:
    multiprocessing = sys.modules.get("multiprocessing")
    main = sys.argv[0] if sys.argv else ""
    if multiprocessing is not None and multiprocessing.parent_process() is not None:
        return f"{multiprocessing.current_process().name} of {_last_part(main)}"
    if main == "-c":
        return "python -c ..."
    return " ".join([_last_part(main), *sys.argv[1:]])


def _command_line(path: Path) -> str:
    arguments = path.read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    return shortened(" ".join([_last_part(arguments[0]), *arguments[1:]]))


def _last_part(path: str) -> str:
    return os.path.basename(path) or path


def noted(profile: Profile, *notes: str) -> Profile:
    """A profile, of all its devices, with more notes."""
    others = tuple(replace(each, notes=(*each.notes, *notes)) for each in profile.others)
    return replace(profile, notes=(*profile.notes, *notes), others=others)


def fullest_first(processes: Sequence[Process]) -> list[Process]:
    """Those with a profile, by the most memory that one of their devices reserved."""

    def most(process: Process) -> int:
        assert process.profile is not None
        return max(each.peak_reserved for each in process.profile.each_device())

    return sorted((each for each in processes if each.profile is not None), key=most, reverse=True)
