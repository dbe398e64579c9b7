"""One process that plays a rank has the events which that rank has among real processes: sizes, order, addresses."""

from __future__ import annotations

import numpy as np
import pytest
from played import Played, play

from vramkit.tape.events import Category, Phase

pytestmark = pytest.mark.virtual_gpu
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
    "FSDP2, accumulation",
    "HSDP",
    "FSDP1",
    "TP",
    "TP, sequence",
    "FSDP2, compiled",
    "Checkpoints",
    "Objects",
)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Played]:
    return play(tmp_path_factory.mktemp("together"), 2, "--ranks", "all")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Played]:
    return play(tmp_path_factory.mktemp("alone"), 2, "--ranks", "0,1", "--alone")


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


@pytest.mark.parametrize("name", ["FSDP2", "FSDP2, checkpoints, clipping", "FSDP2, accumulation"])
def test_a_shard_is_a_parameter_and_what_is_gathered_of_it_another_category(
    name: str, alone: dict[int, Played]
) -> None:
    whole = 4 * 96 * 96 * 4  # bytes of the weight of a block's wide layer
    first = alone[0]
    model = next(each for each in first.names(name) if each.endswith(".blocks.1.up.weight")).partition(".")[0]
    own = f"{model}.blocks.1.up.weight"

    assert _sizes(first, name, Category.PARAMETER, own) == {whole // 2}
    assert _sizes(first, name, Category.OPTIMIZER_STATE, f"exp_avg of {own}") == {whole // 2}
    assert _sizes(first, name, Category.GATHERED, f"gathered of {own}") == {whole}
    assert whole in _sizes(first, name, Category.GRADIENT, f"whole of {own}")


def test_what_tensor_parallel_layers_exchange_and_keep_is_an_activation(alone: dict[int, Played]) -> None:
    table = alone[0].allocations("TP, sequence")

    exchanged = table[(table["category"] == Category.COMMUNICATION) & (table["phase"] == Phase.FORWARD)]
    assert len(exchanged)
    assert (exchanged["died"] >= 0).all()
    assert (alone[0].profile.tape.events["phase"][exchanged["died"]] != Phase.BACKWARD).all()


def test_no_module_has_the_name_of_a_wrapper(alone: dict[int, Played]) -> None:
    wrappers = ("FSDP", "_fsdp", "Distributed", "_checkpoint", "Checkpoint", "_orig_mod", "Optimized")
    for module in alone[0].profile.tape.modules:
        assert not any(part.startswith(wrappers) for part in (*module.name.split("."), module.kind))
