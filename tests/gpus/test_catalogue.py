"""The catalogue of cards."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vramkit import GPU, UsageError, gpus


def test_every_card_is_found_by_name_and_by_product() -> None:
    for card in gpus.all_gpus():
        assert gpus.find(card.name) is card
        assert gpus.find(card.product) is card
        assert gpus.CATALOGUE[card.name] is card


@pytest.mark.parametrize("spelling", ["A100-40GB", "a100 40gb", "A100_40GB", "a10040gb", "NVIDIA A100-SXM4-40GB"])
def test_spelling_does_not_matter(spelling: str) -> None:
    assert gpus.find(spelling) is gpus.CATALOGUE["a100-40gb"]


def test_a_size_is_a_card_of_that_size() -> None:
    card = gpus.find("24 GiB")

    assert card.memory == card.board_memory == 24 << 30
    assert card.capability == gpus.CATALOGUE[gpus.GENERIC].capability
    assert gpus.find(24 << 30) == gpus.find(np.int64(24 << 30)) == card


def test_a_described_card_is_taken_as_it_is() -> None:
    card = GPU(name="mine", memory=20 << 30, capability=(8, 6), multiprocessors=64)

    assert gpus.find(card) is card
    assert card.product == "mine"
    assert card.board_memory == card.memory


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("a100", "nearest are 'a100-40gb', 'a100-80gb'"),
        ("4090", "nearest are 'rtx4090'"),
        ("rtx 4900", "'rtx4090'"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError, match="neither in the catalogue nor a size; nearest are") as raised:
        gpus.find(name)

    assert near in str(raised.value)


@pytest.mark.parametrize("nonsense", ["", "0 GiB", 0, -1, None, 1.5])
def test_what_is_no_card_is_refused(nonsense: object) -> None:
    with pytest.raises(UsageError, match="was asked for"):
        gpus.find(nonsense)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "advice"),
    [
        (24, r"have 24 B\. Write '24 GiB' if"),
        (np.int64(24), r"have 24 B\. Write '24 GiB' if"),
        ("24", "Write '24 GiB' if"),
        ("0 GiB", r"would have 0 B\. Name one"),
    ],
)
def test_a_number_without_a_unit_is_asked_for_one_and_no_size_is_recommended(size: str | int, advice: str) -> None:
    with pytest.raises(UsageError, match=advice):
        gpus.find(size)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"capability": (3, 5)}, "Known are 7.0"),
        ({"memory": 0}, "above 0"),
        ({"name": "a;b"}, "may not hold"),
        ({"product": 'a"b'}, "may not hold"),
    ],
)
def test_a_card_that_cannot_be_is_refused(change: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        dataclasses.replace(gpus.CATALOGUE["t4"], **change)  # type: ignore[arg-type]


def test_a_board_carries_a_little_more_than_cuda_can_use() -> None:
    for card in gpus.all_gpus():
        assert 0.95 * card.board_memory < card.memory < card.board_memory, card.name
        assert card.context < card.memory // 10, card.name
