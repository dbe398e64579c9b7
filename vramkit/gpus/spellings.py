"""How people write a card's name, and which cards the machines have that clouds rent. Knows names alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

_MACHINES = {
    r"g4dn\.": ("AWS", "t4"),
    r"g5\.": ("AWS", "a10g"),
    r"g6e\.": ("AWS", "l40s"),
    r"g6\.": ("AWS", "l4"),
    r"p3\.": ("AWS", "v100-16gb"),
    r"p3dn\.": ("AWS", "v100-32gb"),
    r"p4d\.": ("AWS", "a100-40gb"),
    r"p4de\.": ("AWS", "a100-80gb"),
    r"p5\.": ("AWS", "h100"),
    r"p5en?\.": ("AWS", "h200"),
    r"p6-b200\.": ("AWS", "b200"),
    r"a2-highgpu|a2-megagpu": ("Google Cloud", "a100-40gb"),
    r"a2-ultragpu": ("Google Cloud", "a100-80gb"),
    r"a3-(high|mega|edge)gpu": ("Google Cloud", "h100"),
    r"a3-ultragpu": ("Google Cloud", "h200"),
    r"a4-highgpu": ("Google Cloud", "b200"),
    r"g2-standard": ("Google Cloud", "l4"),
    r"(standard_)?nc\d+s_v3": ("Azure", "v100-16gb"),
    r"(standard_)?nc\d+as_t4_v3": ("Azure", "t4"),
    r"(standard_)?nc\d+ads_a100_v4": ("Azure", "a100-80gb-pcie"),
    r"(standard_)?nd\d+asr_v4": ("Azure", "a100-40gb"),
    r"(standard_)?nd\d+amsr_a100_v4": ("Azure", "a100-80gb"),
    r"(standard_)?nc\d+adi?s_h100_v5": ("Azure", "h100-nvl"),
    r"(standard_)?nd\d+isr_h100_v5": ("Azure", "h100"),
    r"(google\W*)?colab": ("Google Colab", "t4", "l4", "a100-40gb", "a100-80gb"),
    r"kaggle": ("Kaggle", "t4", "p100"),
}
"""How the names of rented machines begin: of whom they are, and which cards they have, as the clouds' lists of machine
types say.
"""
_SIZE_AND_SLICE = re.compile(r"-\d+gb-(?=\d+g\.)")
_SLICE = re.compile(r"\d+g\.\d+gb$")


def plain(name: str) -> str:
    """A name as people may write it: "NVIDIA GeForce RTX 3080 12GB" is "rtx-3080 12 gb", and a "10GiB" one of 10 GB."""
    written = re.sub(r"[\s_\-]+", "", name.lower())
    for word, instead in (("generation", ""), ("mobile", "laptop"), ("mig", ""), ("gib", "gb")):
        written = written.replace(word, instead)
    return re.sub(r"^(nvidia|geforce|tesla|rtx|gtx)+|gpu$", "", written)


def spellings(cards: Iterable[tuple[str, str, int, Iterable[str]]]) -> dict[str, str]:
    """Names of cards by everything that they may be called, written plainly.

    Args:
        cards: of each its name, its product, MiB of its board, and its other names; of one product's kinds, the first
            is meant.
    """
    cards = [*cards]
    found: dict[str, str] = {}
    for name, product, _, _ in reversed(cards):
        found[plain(product)] = name
    for name, _, _, aliases in cards:
        found |= {plain(alias): name for alias in aliases}
    found |= {plain(name): name for name, *_ in cards}
    others: defaultdict[str, set[str]] = defaultdict(set)
    for name, product, board, _ in cards:
        for each in _longer_and_shorter(name, product, board):
            others[plain(each)].add(name)
    return {**{each: min(names) for each, names in others.items() if len(names) == 1}, **found}


def _longer_and_shorter(name: str, product: str, board: int) -> Iterator[str]:
    """With the gigabytes that are on its box, or, of a slice, without those of the whole card, or without its name."""
    if not (profile := _SLICE.search(name)):
        yield from (f"{each} {round(board / 1024)}gb" for each in (name, product))
        return
    yield from (profile[0], _SIZE_AND_SLICE.sub("-", name))


def rented(name: str) -> tuple[str, ...]:
    """Whose machine is meant, and the names of the cards that it may have; () where none is.

    ::

        rented("g5.xlarge")     # ("AWS", "a10g")
    """
    written = name.strip().lower()
    return next((found for begins, found in _MACHINES.items() if re.match(begins, written)), ())


def one_of_several(name: str) -> str:
    """The card where several are written ("8xA100", "T4 x2"), else ""."""
    several = re.fullmatch(
        r"\s*(?:\d+\s*[x×*]\s*(?P<after>\D.*)|(?P<before>.*[\s\d])[x×*]\s*\d+)\s*", name, re.IGNORECASE
    )
    return "" if several is None else several["after"] or several["before"]
