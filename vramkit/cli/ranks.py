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
    size = group.add_mutually_exclusive_group()
    size.add_argument("--world-size", type=int, metavar="N", help="ranks of the job")
    size.add_argument(
        "--nproc", type=int, metavar="N", help="play all ranks of a machine with N GPUs, as torchrun --nproc-per-node N"
    )
    which = group.add_mutually_exclusive_group()
    which.add_argument("--rank", type=int, metavar="R", help="play this one; the others are its mirrors (default: 0)")
    which.add_argument(
        "--ranks",
        metavar="R,R,...|all",
        help="play several, a process each, which meet; the others are mirrors of each. all: every one",
    )
    group.add_argument("--alone", action="store_true", help="with --ranks: play one after another, each alone")
    group.add_argument(
        "--gpus-per-node", type=int, metavar="N", help=f"GPUs of each machine (default: {GPUS_PER_NODE})"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedJob:
    """The ranks that are played."""

    places: tuple[Place, ...]
    """Empty: the script has none, or a launcher gave this process its own."""
    meets: bool = False
    """Whether they are played at the same time, and meet; otherwise each is alone."""

    @property
    def mirrored_of(self) -> int | None:
        """Ranks of the job, if some are absent while others are played; None: no job, or they are all there."""
        size = self.places[0].world_size if self.places else 0
        return size if self.places and not (self.meets and len(self.places) == size) else None

    @property
    def together(self) -> tuple[int, ...]:
        """The ranks that are played at the same time; empty: several, each alone."""
        return tuple(each.rank for each in self.places) if self.meets or len(self.places) == 1 else ()

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
        if len(self.places) > 1:
            return Processes(script, self)
        os.environ.update(self.places[0].environment(free_port()))
        return script


def job_of(options: argparse.Namespace) -> PlayedJob:
    """The job that options ask for.

    Raises:
        UsageError: they don't fit together.
    """
    if options.alone and options.ranks is None:
        raise UsageError("--alone was given without --ranks", instead="A single --rank is alone anyhow")
    if options.nproc is not None:
        return _whole_machine(options)
    if options.world_size is None:
        for name in ("rank", "ranks", "gpus_per_node"):
            if getattr(options, name) is not None:
                raise UsageError(
                    f"--{name.replace('_', '-')} was given without --world-size", instead="Say of how many ranks"
                )
        return PlayedJob(places=())
    if options.gpu == "real":
        raise UsageError(
            "--world-size was given with --gpu real",
            "ranks are played on virtual GPUs",
            instead="Name a card, or start the script with torchrun",
        )
    if options.ranks == "all":
        ranks: Sequence[int] = range(options.world_size)
    elif options.ranks is not None:
        ranks = _numbers(options.ranks)
    else:
        ranks = [options.rank or 0]
    gpus = GPUS_PER_NODE if options.gpus_per_node is None else options.gpus_per_node
    places = [Place(rank=rank, world_size=options.world_size, gpus_per_node=gpus) for rank in ranks]
    return PlayedJob(places=tuple(places), meets=len(places) > 1 and not options.alone)


def _whole_machine(options: argparse.Namespace) -> PlayedJob:
    count = options.nproc
    if any(given is not None for given in (options.rank, options.ranks, options.gpus_per_node)):
        raise UsageError(
            "--nproc was given with other options of ranks",
            "It plays every rank of one machine",
            instead=f"Say of how many ranks: --world-size {count}",
        )
    places = [Place(rank=rank, world_size=count, gpus_per_node=count) for rank in range(max(count, 1))]
    return PlayedJob(places=tuple(places), meets=len(places) > 1)


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

    def __init__(self, script: Script, job: PlayedJob) -> None:
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
