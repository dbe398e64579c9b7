"""One process that plays a rank has the events which that rank has among real processes: sizes, order, addresses."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import vramkit
from vramkit.tape.events import Action

pytestmark = pytest.mark.virtual_gpu
SCRIPT = Path(__file__).with_name("parallel_programs.py")
NAMES = (
    "DDP",
    "DDP, bucket views",
    "DDP, static graph",
    "DDP, no_sync",
    "DDP, bf16 hook",
    "ZeRO-1",
    "FSDP2",
    "FSDP2, bf16",
    "FSDP2, no reshard",
    "FSDP2, CPU offload",
    "FSDP2, checkpoints, clipping",
    "HSDP",
    "FSDP1",
    "TP",
    "TP, sequence",
)


@dataclass(frozen=True)
class Played:
    """What a rank did."""

    rows: dict[str, dict[str, Any]]
    profile: vramkit.Profile

    def events(self, name: str) -> npt.NDArray[Any]:
        """What happened while a strategy ran, how large it was, and where."""
        events = self.profile.tape.events
        starts = [row["first"] for row in self.rows.values()] + [len(events)]
        first = self.rows[name]["first"]
        number = np.cumsum(events["action"] == Action.ALLOC) - 1
        inside = (number >= first) & (number < starts[starts.index(first) + 1])
        return events[inside][["action", "size", "address"]]


def play(folder: Path, *options: str) -> dict[int, Played]:
    """Run every strategy; what each rank did that was played."""
    saved = folder / "rank.npz"
    document = folder / "run.json"
    command = [sys.executable, "-m", "vramkit", "run", "--gpu", "h100", "--world-size", "2", *options]
    command += ["--save", str(saved), "--json", str(document), str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("ROW ")]
    ranks = [each["rank"] for each in json.loads(document.read_text())["processes"]]
    names = [saved, *(folder / f"rank-{number}.npz" for number in range(2, len(ranks) + 1))]
    return {
        rank: Played({row["name"]: row for row in rows if row["rank"] == rank}, vramkit.load(name))
        for rank, name in zip(ranks, names, strict=True)
    }


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Played]:
    return play(tmp_path_factory.mktemp("together"), "--ranks", "all")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Played]:
    return play(tmp_path_factory.mktemp("alone"), "--ranks", "0,1")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_a_rank_alone_has_the_events_of_one_among_processes(
    name: str, rank: int, together: dict[int, Played], alone: dict[int, Played]
) -> None:
    one, many = alone[rank], together[rank]

    assert one.rows[name] == many.rows[name]
    assert len(one.events(name)) > 300
    assert np.array_equal(one.events(name), many.events(name))
