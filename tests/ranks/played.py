"""Ranks that played the strategies of ``parallel_programs.py``: what each of them did, by strategy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import vramkit
from vramkit import virtual_gpu
from vramkit.tape.events import Action, Table

SCRIPT = Path(__file__).with_name("parallel_programs.py")


@dataclass(frozen=True)
class Played:
    """What a rank did."""

    rows: dict[str, dict[str, Any]]
    profile: vramkit.Profile

    def inside(self, name: str) -> npt.NDArray[np.bool_]:
        """Which events came while a strategy ran."""
        events = self.profile.tape.events
        starts = [row["first"] for row in self.rows.values()] + [len(events)]
        first = self.rows[name]["first"]
        number = np.cumsum(events["action"] == Action.ALLOC) - 1
        return (number >= first) & (number < starts[starts.index(first) + 1])

    def events(self, name: str) -> npt.NDArray[Any]:
        """What happened while a strategy ran, how large it was, and where."""
        return self.profile.tape.events[self.inside(name)][["action", "size", "address"]]

    def allocations(self, name: str) -> Table:
        """What was allocated while a strategy ran."""
        table = self.profile.tape.allocations
        return table[(table["born"] >= 0) & self.inside(name)[table["born"]]]

    def sizes(self, name: str) -> npt.NDArray[Any]:
        """What was asked for while a strategy ran, in order."""
        events = self.profile.tape.events[self.inside(name)]
        return events["size"][events["action"] == Action.ALLOC]

    def names(self, name: str) -> list[str]:
        """The names of what was allocated while a strategy ran."""
        names = self.profile.tape.names
        return [names[index] for index in self.allocations(name)["name"] if index >= 0]


def play(folder: Path, size: int, *options: str, names: Sequence[str] = (), script: Path = SCRIPT) -> dict[int, Played]:
    """`run` on an H100, where there is the virtual GPU."""
    if not virtual_gpu.is_active():  # asked before the marker is looked at
        pytest.skip("needs the virtual GPU")
    return run(folder, size, "--gpu", "h100", *options, names=names, script=script)


def run(folder: Path, size: int, *options: str, names: Sequence[str] = (), script: Path = SCRIPT) -> dict[int, Played]:
    """Run a script's strategies, all of them if none is named; what each rank did that was played."""
    saved = folder / "rank.npz"
    document = folder / "run.json"
    command = [sys.executable, "-m", "vramkit", "run", "--world-size", str(size)]
    command += [*options, "--save", str(saved), "--json", str(document), str(script), *names]
    environment = {**os.environ, "CHECKPOINTS": str(folder / "checkpoints")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("ROW ")]
    ranks = [each["rank"] for each in json.loads(document.read_text())["processes"]]
    files = [saved, *(folder / f"rank-{number}.npz" for number in range(2, len(ranks) + 1))]
    return {
        rank: Played({row["name"]: row for row in rows if row["rank"] == rank}, vramkit.load(file))
        for rank, file in zip(ranks, files, strict=True)
    }
