"""Pipelines, whose ranks differ: some of them are played, meet, and have the events which they have among all."""

from __future__ import annotations

import numpy as np
import pytest
from played import Played, play

pytestmark = pytest.mark.virtual_gpu
TOLD = ("GPipe and FSDP2, 2 x 2", "1F1B and FSDP2, 2 x 2", "Interleaved and FSDP2, 2 x 2")
ASKED = "1F1B, shapes asked, 2 x 2"


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Played]:
    return play(tmp_path_factory.mktemp("together"), 4, "--ranks", "all", names=[*TOLD, ASKED])


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Played]:
    return play(tmp_path_factory.mktemp("some"), 4, "--ranks", "1,3", names=[*TOLD, ASKED])


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("name", TOLD)
def test_ranks_that_meet_have_the_events_of_ranks_that_are_all_there(
    name: str, rank: int, together: dict[int, Played], some: dict[int, Played]
) -> None:
    assert list(some) != list(together)
    assert len(some[rank].events(name)) > 300
    assert np.array_equal(some[rank].events(name), together[rank].events(name))


@pytest.mark.parametrize("rank", [1, 3])
def test_stages_that_ask_each_other_for_shapes_ask_for_the_same_memory(
    rank: int, together: dict[int, Played], some: dict[int, Played]
) -> None:
    # When the backward's thread frees what it held last is a race with the next request, on a card too.
    assert len(some[rank].sizes(ASKED)) > 100
    assert np.array_equal(some[rank].sizes(ASKED), together[rank].sizes(ASKED))


def test_stages_differ(together: dict[int, Played]) -> None:
    first, last = (together[rank].rows[TOLD[0]]["peak"] for rank in (0, 2))

    assert first != last


def test_the_first_stage_is_played_alone_where_shapes_are_told(
    together: dict[int, Played], tmp_path_factory: pytest.TempPathFactory
) -> None:
    alone = play(tmp_path_factory.mktemp("alone"), 4, "--rank", "0", names=TOLD)

    for name in TOLD:
        assert np.array_equal(alone[0].events(name), together[0].events(name))
