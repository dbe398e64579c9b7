"""Which ranks of a distributed job ``vramkit run`` plays, and how: this process is one, or starts one for each.

Knows options, environments and processes; what a rank is, ``vramkit.ranks`` knows.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from ..ranks.place import GPUS_PER_NODE, Place
from .script import Script

_LOOK = 0.05  # seconds between two looks at processes


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that ask for ranks."""
    group = parser.add_argument_group("any rank of a distributed job, each on a virtual GPU")
    group.add_argument("--world-size", type=int, metavar="N", help="ranks of the job")
    which = group.add_mutually_exclusive_group()
    which.add_argument("--rank", type=int, metavar="R", help="play this one; the others are its mirrors (default: 0)")
    which.add_argument(
        "--ranks",
        metavar="R,R,...|all",
        help="play several, each in a process of its own and alone; all: every one, in processes that meet",
    )
    group.add_argument(
        "--gpus-per-node", type=int, metavar="N", help=f"GPUs of each machine (default: {GPUS_PER_NODE})"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The ranks that are played."""

    places: tuple[Place, ...]
    """Empty: the script has none, or a launcher gave this process its own."""
    meets: bool = False
    """Whether they are all there and meet; otherwise each is alone."""

    @property
    def alone_of(self) -> int | None:
        """Ranks of the job of which each is played alone; None: no job, or they meet."""
        return self.places[0].world_size if self.places and not self.meets else None

    @property
    def devices(self) -> int | None:
        """How many GPUs a machine has; None: the job doesn't say."""
        if self.places:
            return max(each.local_world_size for each in self.places)
        launched = Place.of(os.environ)
        return None if launched is None else launched.local_world_size

    def name_files(self, options: argparse.Namespace) -> None:
        """Let each rank of a launcher, which has a report of its own, write to files of its own."""
        launched = Place.of(os.environ)
        if self.places or launched is None or launched.world_size == 1:
            return
        for name in ("save", "html", "json"):
            path = getattr(options, name)
            if path is not None and path != "-":
                file = Path(path)
                setattr(options, name, str(file.with_name(f"{file.stem}-rank{launched.rank}{file.suffix}")))

    def script(self, script: Script) -> Script | Processes:
        """What is run in this process: the script itself, as the only rank, or what starts the ranks."""
        if not self.places:
            return script
        if len(self.places) > 1 or self.meets:
            return Processes(script, self)
        os.environ.update(self.places[0].environment(free_port()))
        return script


def job_of(options: argparse.Namespace) -> Job:
    """The job that options ask for.

    Raises:
        UsageError: they don't fit together.
    """
    if options.world_size is None:
        for name in ("rank", "ranks", "gpus_per_node"):
            if getattr(options, name) is not None:
                raise UsageError(
                    f"--{name.replace('_', '-')} was given without --world-size", instead="Say of how many ranks"
                )
        return Job(places=())
    if options.gpu == "real":
        raise UsageError(
            "--world-size was given with --gpu real",
            "ranks are played on virtual GPUs",
            instead="Name a card, or start the script with torchrun",
        )
    meets = options.ranks == "all"
    if meets:
        ranks: Sequence[int] = range(options.world_size)
    elif options.ranks is not None:
        ranks = _numbers(options.ranks)
    else:
        ranks = [options.rank or 0]
    gpus = GPUS_PER_NODE if options.gpus_per_node is None else options.gpus_per_node
    places = [Place(rank=rank, world_size=options.world_size, gpus_per_node=gpus) for rank in ranks]
    return Job(places=tuple(places), meets=meets and options.world_size > 1)


def _numbers(text: str) -> list[int]:
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UsageError(f"--ranks {text!r} was given", instead="Give numbers, such as 0,32, or all") from None


class Processes:
    """Runs a script in a process for each rank: all at once where they meet, else one after another.

    Args:
        script: it.
        job: its ranks.
    """

    def __init__(self, script: Script, job: Job) -> None:
        self._command = [sys.executable, *script.command]
        self._job = job
        self._running: list[subprocess.Popen[bytes]] = []

    def run(self) -> None:
        """Run it, to the end of every process.

        Raises:
            SystemExit: with the code of the first that failed; where they meet, the others are ended then.
        """
        port, codes = free_port(), list[int]()
        try:
            for place in self._job.places:
                environment = {**os.environ, **place.environment(port)}
                self._running.append(subprocess.Popen(self._command, env=environment))
                if not self._job.meets:
                    codes.append(self._wait())
            if self._job.meets:
                codes.append(self._wait())
        finally:
            self._end()
        failed = next(filter(None, codes), 0)
        if failed:
            raise SystemExit(failed if failed > 0 else 128 - failed)

    def _wait(self) -> int:
        """Wait for those that run; the code of the first that fails, which nobody waits for."""
        while self._running:
            ended = [each for each in self._running if each.poll() is not None]
            self._running = [each for each in self._running if each not in ended]
            failed = next((each.returncode for each in ended if each.returncode), 0)
            if failed:
                self._end()
                return failed
            time.sleep(_LOOK)
        return 0

    def _end(self) -> None:
        """Let those that still run leave what they have measured."""
        running, self._running = self._running, []
        for each in running:
            with suppress(OSError):
                each.terminate()
        for each in running:
            with suppress(subprocess.TimeoutExpired):
                each.wait(timeout=10)
            each.kill()
            each.wait()


def free_port() -> int:
    """A port of this machine that nobody uses just now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
