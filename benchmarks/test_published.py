"""Figures that others measured on real GPUs, said again on the virtual ones: those whose programs are quick."""

from __future__ import annotations

import pytest

from benchmarks.needs import needs_virtual_gpu
from benchmarks.published.figures import FIGURES, Figure
from benchmarks.published.running import Row, say

QUICK = [
    each
    for each in FIGURES
    if each.program
    in (
        "cross_entropy 131072",
        "rms_norm 32768",
        "swiglu 8192",
        "length 256, width 16",
        "as it was",
        "SGD",
    )
]


@needs_virtual_gpu
@pytest.mark.parametrize("figure", QUICK, ids=[each.program for each in QUICK])
def test_a_published_figure_is_said_again(figure: Figure) -> None:
    if "images" in figure.call:
        pytest.importorskip("torchvision")

    row = say(figure)

    assert row.failure == ""
    assert row.equal, f"{row.bytes} B instead of {figure.value} {figure.source.unit}"


def test_a_figure_counts_as_equal_only_to_its_last_digit() -> None:
    figure = next(each for each in FIGURES if each.source.digits == 3)
    size = round(figure.value * figure.source.size)

    assert Row(figure, size + 400_000).equal
    assert not Row(figure, size + 600_000).equal
    assert not Row(figure, None, "ended").equal
