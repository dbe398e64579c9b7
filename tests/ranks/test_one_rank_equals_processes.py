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
from vramkit import virtual_gpu
from vramkit.tape.events import Action, Category, Phase, Table

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

    def names(self, name: str) -> list[str]:
        """The names of what was allocated while a strategy ran."""
        names = self.profile.tape.names
        return [names[index] for index in self.allocations(name)["name"] if index >= 0]


def play(folder: Path, *options: str) -> dict[int, Played]:
    """Run every strategy; what each rank did that was played."""
    if not virtual_gpu.is_active():  # asked before the marker is looked at
        pytest.skip("needs the virtual GPU")
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


def _sizes(played: Played, name: str, category: Category, label: str) -> set[int]:
    """The sizes of a strategy's allocations that have a category and a name."""
    names, table = played.profile.tape.names, played.allocations(name)
    rows = table[table["category"] == category]
    return {int(row["requested"]) for row in rows if row["name"] >= 0 and names[row["name"]] == label}


@pytest.mark.parametrize("name", ["DDP", "DDP, static graph", "ZeRO-1"])
def test_buckets_of_ddp_are_as_large_as_the_gradients(name: str, alone: dict[int, Played]) -> None:
    table = alone[0].allocations(name)

    buckets = table[(table["category"] == Category.COMMUNICATION) & (table["phase"] == Phase.FORWARD)]["requested"]
    parameters = table[table["category"] == Category.PARAMETER]["requested"]
    assert buckets[buckets > 1000].sum() == parameters.sum()


def test_what_a_bucket_view_shows_is_a_gradient(alone: dict[int, Played]) -> None:
    table = alone[0].allocations("DDP, bucket views")

    rebuilt = table[(table["phase"] == Phase.FORWARD) & (table["category"] == Category.GRADIENT)]["requested"]
    assert rebuilt.sum() == table[table["category"] == Category.PARAMETER]["requested"].sum()


def test_a_shard_is_a_parameter_and_what_is_gathered_of_it_another_category(alone: dict[int, Played]) -> None:
    whole = 4 * 96 * 96 * 4  # bytes of the weight of a block's wide layer
    first = alone[0]
    model = next(each for each in first.names("FSDP2") if each.endswith(".blocks.1.up.weight")).partition(".")[0]
    own = f"{model}.blocks.1.up.weight"

    assert _sizes(first, "FSDP2", Category.PARAMETER, own) == {whole // 2}
    assert _sizes(first, "FSDP2", Category.OPTIMIZER_STATE, f"exp_avg of {own}") == {whole // 2}
    assert _sizes(first, "FSDP2", Category.GATHERED, f"gathered of {own}") == {whole}
    assert _sizes(first, "FSDP2", Category.GRADIENT, f"whole of {own}") == {whole}


def test_what_tensor_parallel_layers_exchange_and_keep_is_an_activation(alone: dict[int, Played]) -> None:
    table = alone[0].allocations("TP, sequence")

    exchanged = table[(table["category"] == Category.COMMUNICATION) & (table["phase"] == Phase.FORWARD)]
    assert len(exchanged)
    assert (exchanged["died"] >= 0).all()
    assert (alone[0].profile.tape.events["phase"][exchanged["died"]] != Phase.BACKWARD).all()


def test_no_module_has_the_name_of_a_wrapper(alone: dict[int, Played]) -> None:
    for module in alone[0].profile.tape.modules:
        assert not any(part.startswith(("FSDP", "_fsdp", "Distributed")) for part in module.name.split("."))
