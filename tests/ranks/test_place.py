"""Which rank a process is, and what its environment says."""

from __future__ import annotations

import pytest

from vramkit.errors import UsageError
from vramkit.ranks import Place


def test_the_last_machine_may_have_fewer_gpus() -> None:
    last = Place(rank=9, world_size=10, gpus_per_node=4)

    assert (last.node, last.local_rank, last.local_world_size) == (2, 1, 2)
    assert last.environment(1234)["GROUP_WORLD_SIZE"] == "3"


def test_a_process_finds_the_place_that_its_environment_gives() -> None:
    place = Place(rank=5, world_size=16, gpus_per_node=8)

    assert Place.of(place.environment(1)) == place
    assert Place.of({}) is None
    assert Place.of({"RANK": "x", "WORLD_SIZE": "2"}) is None
    assert Place.of({"RANK": "2", "WORLD_SIZE": "2"}) is None


@pytest.mark.parametrize(("rank", "size", "gpus"), [(-1, 2, 8), (2, 2, 8), (0, 0, 8), (0, 1, 0)])
def test_a_place_that_no_job_has_is_refused(rank: int, size: int, gpus: int) -> None:
    with pytest.raises(UsageError):
        Place(rank=rank, world_size=size, gpus_per_node=gpus)
