"""The catalogue of cards."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from vramkit import GPU, UsageError, gpus
from vramkit.gpus import spellings
from vramkit.gpus.catalogue import _derived
from vramkit.virtual_gpu.handle import Settings


def test_every_card_is_found_by_name_and_by_product() -> None:
    for card in gpus.all_gpus():
        assert gpus.find(card.name) is card
        assert gpus.find(card.product).product == card.product  # a product can have kinds of several sizes
        assert gpus.CATALOGUE[card.name] is card


@pytest.mark.parametrize("spelling", ["A100-40GB", "a100 40gb", "A100_40GB", "a10040gb", "NVIDIA A100-SXM4-40GB"])
def test_spelling_does_not_matter(spelling: str) -> None:
    assert gpus.find(spelling) is gpus.CATALOGUE["a100-40gb"]


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("RTX 3080 12GB", "rtx3080-12gb"),
        ("GeForce RTX 3080", "rtx3080"),
        ("NVIDIA GeForce RTX 3080", "rtx3080"),
        ("rtx 3080 10 GiB", "rtx3080"),
        ("h100-80gb", "h100"),
        ("RTX 4070 Ti Super", "rtx4070tisuper"),
        ("RTX 4090 Mobile", "rtx4090-laptop"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "rtx4090-laptop"),
        ("RTX 6000 Ada", "rtx6000ada"),
        ("Tesla P40", "p40"),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", "a100-80gb-3g.40gb"),
        ("A100 1g.5gb", "a100-40gb-1g.5gb"),
        ("MIG 1g.5gb", "a100-40gb-1g.5gb"),
        ("4070 ti super", "rtx4070tisuper"),
        ("4090", "rtx4090"),
        ("RTX 4090 24GB", "rtx4090"),
        ("RTX 3080 10G", "rtx3080"),
        ("a10g", "a10g"),
    ],
)
def test_a_card_is_found_as_people_write_it(spelling: str, name: str) -> None:
    assert gpus.find(spelling).name == name


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
        ("a100", "nearest are 'a100-40gb', 'a100-40gb-pcie', 'a100-80gb', 'a100-80gb-pcie'"),
        ("v100", "nearest are 'v100-16gb', 'v100-16gb-pcie', 'v100-32gb'"),
        ("rtx3080laptop8", "'rtx3080-laptop-8gb'"),
        ("1g.10gb", "'a100-80gb-1g.10gb'"),
        ("8xA100", "nearest are 'a100-40gb', 'a100-40gb-pcie', 'a100-80gb'"),
        ("rtx 4900", "'rtx4090'"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError, match="neither in the catalogue nor a size; nearest are") as raised:
        gpus.find(name)

    assert near in str(raised.value)


@pytest.mark.parametrize(
    ("machine", "cards"),
    [
        ("g5.xlarge", "a machine of AWS. Name what such a machine has: 'a10g'"),
        ("p5en.48xlarge", "'h200'"),
        ("Standard_NC24ads_A100_v4", "'a100-80gb-pcie'"),
        ("a2-highgpu-1g", "'a100-40gb'"),
        ("Kaggle", "'t4' or 'p100'"),
    ],
)
def test_a_rented_machine_is_answered_with_its_cards(machine: str, cards: str) -> None:
    with pytest.raises(UsageError) as raised:
        gpus.find(machine)

    assert cards in str(raised.value)


def test_the_cards_of_rented_machines_are_in_the_catalogue() -> None:
    assert {card for _, *cards in spellings._MACHINES.values() for card in cards} <= gpus.CATALOGUE.keys()


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
        ({"capability": (3, 5)}, "Known are 6.0"),
        ({"memory": 0}, "above 0"),
        ({"name": "a;b"}, "may not hold"),
        ({"product": 'a"b'}, "may not hold"),
        ({"product": "\x1b[31mred"}, r"\\x1b\[31mred'.*printable"),
        ({"name": "x" * 300}, "at most 256 characters"),
        ({"name": 5}, "Got 5"),
        ({"memory": "24 GiB"}, "memory='24 GiB'"),
        ({"memory": 2**70}, r"No virtual card is larger than 4\.00 TiB"),
        ({"context": 10**5000}, r"context=a number of 16,610 bits.*4\.00 TiB"),
        ({"l2_cache": -1}, "from 0 on"),
        ({"capability": [7, 5]}, "Known are 6.0"),
        ({"capability": (10**5000, 5)}, r"capability \(a number of 16,610 bits, 5\)"),
    ],
)
def test_a_card_that_cannot_be_is_refused(change: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        dataclasses.replace(gpus.CATALOGUE["t4"], **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [2**70, (4 << 40) + 1, "5 TiB", f"{2**70} B"])
def test_a_size_that_no_virtual_card_can_have_is_refused_with_the_largest(size: str | int) -> None:
    with pytest.raises(UsageError, match=r"It would have .*larger than 4\.00 TiB\. Give it that, or less"):
        gpus.find(size)


def test_the_largest_card_is_one_that_can_be_switched_on() -> None:
    card = gpus.find("4 TiB")

    settings = Settings(gpu=card, count=1, address_order="falling", copy_limit=0, values="none")

    assert card.memory == gpus.MAX_MEMORY == settings.max_memory


@pytest.mark.parametrize("name", ["9" * 5000, "9" * 5000 + " GiB", 10**5000, "a100" * 5000, "\x1b[31m" * 100], ids=type)
def test_a_name_of_any_length_is_refused_in_a_short_and_printable_text(name: str | int) -> None:
    with pytest.raises(UsageError, match="was asked for") as raised:
        gpus.find(name)

    assert len(str(raised.value)) < 1500
    assert str(raised.value).isprintable()


def test_a_board_carries_a_little_more_than_cuda_can_use_and_a_slice_as_much() -> None:
    for card in gpus.all_gpus():
        is_slice = " MIG " in card.product
        assert 0.94 * card.board_memory < card.memory <= card.board_memory, card.name
        assert is_slice == (card.memory == card.board_memory), card.name
        assert card.context < card.memory // 8, card.name


def test_the_memory_that_is_derived_is_marked_and_what_records_say_is_seldom_less() -> None:
    cards = [card for card in gpus.all_gpus() if " MIG " not in card.product]
    derived = [card for card in cards if gpus.is_derived(card)]
    recorded = [card for card in cards if not gpus.is_derived(card)]
    less = [card.name for card in recorded if card.memory < _derived(card.board_memory >> 20) << 20]

    assert len(gpus.all_gpus()) >= 70
    assert derived
    assert [card.memory >> 20 for card in derived] == [_derived(card.board_memory >> 20) for card in derived]
    assert all(map(gpus.record, gpus.all_gpus()))
    assert less == ["rtx4050-laptop", "a100-40gb"]
    assert not gpus.is_derived(dataclasses.replace(derived[0], memory=1 << 32))


def test_a_name_means_one_card() -> None:
    plain = [re.sub(r"[\s_\-]+", "", name) for card in gpus.all_gpus() for name in (card.name,)]

    assert len(plain) == len({*plain})
    assert {card.name for card in gpus.common_gpus()} < {*gpus.CATALOGUE}
