"""Gradients that lie beside the buckets in which ranks reduce them, on told profiles."""

from __future__ import annotations

import pytest
from told_profiles import MIB, Story

from vramkit.reports.advice import advise
from vramkit.reports.moment import moment_of
from vramkit.reports.rules.advised import Advice
from vramkit.tape.events import Category, Phase

NAMES = ("Net.blocks.0.up.weight", "Net.head.weight")


def advice(*, bucket: int = 8 * MIB, stays: bool = True, cleared: bool = True) -> Advice | None:
    """Of three steps of two parameters of 4 MiB, whose gradients are 4 MiB each.

    Args:
        bucket: bytes of the bucket that is made in the second step's forward.
        stays: it is there to the end; else it goes with each backward.
        cleared: gradients go before the next forward; else within it, when the bucket is there.
    """
    story, gradients, made = Story(), list[int](), -1
    for name in NAMES:
        story.alloc(4 * MIB, Category.PARAMETER, Phase.OUTSIDE, name=name)
    for step in range(3):
        if step and (made < 0 or not stays):
            made = story.alloc(bucket, Category.COMMUNICATION, Phase.FORWARD, step=step)
        activation = story.alloc(MIB, Category.ACTIVATION, Phase.FORWARD, step=step)
        for row in gradients:
            story.free(row, Phase.FORWARD, step=step)
        story.free(activation, Phase.BACKWARD, step=step)
        gradients = [story.alloc(4 * MIB, Category.GRADIENT, Phase.BACKWARD, step=step, name=name) for name in NAMES]
        if made >= 0 and not stays:
            story.free(made, Phase.BACKWARD, step=step)
        story.begin(Phase.OPTIMIZER, step=step)
        if cleared:
            for row in gradients:
                story.free(row, Phase.OUTSIDE, step=step)
            gradients = []
    profile = story.profile()
    found = [each for each in advise(profile, moment_of(profile), limit=99) if "gradient_as_bucket_view" in each.text]
    return found[0] if found else None


def test_gradients_can_lie_in_buckets() -> None:
    found = advice()

    assert found is not None
    assert found.saves == 4 * MIB, "the last one is still made, before it is copied"
    assert "8.00 MiB" in found.text


def test_gradients_that_are_there_when_the_buckets_are_made_keep_the_first_ones() -> None:
    found = advice(cleared=False)

    assert found is None or found.saves < 4 * MIB


@pytest.mark.parametrize(
    ("bucket", "stays"),
    [(4 * MIB, True), (64 * MIB, True), (8 * MIB, False)],
    ids=["smaller than the gradients", "larger than the parameters", "gone with each backward"],
)
def test_other_buffers_of_collectives_are_none_of_gradients(bucket: int, stays: bool) -> None:
    assert advice(bucket=bucket, stays=stays) is None
