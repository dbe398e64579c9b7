"""What a report says of masks that each layer casts, and of outputs that are joined, on profiles that are told."""

from __future__ import annotations

import pytest
from told_profiles import MIB, Story

from vramkit.reports.advice import advise
from vramkit.reports.moment import moment_of
from vramkit.reports.rules.advised import Advice
from vramkit.results.profile import Profile
from vramkit.tape.events import Category, Module, Phase

SHAPE, WIDE = (2, 512, 64), (2, 512, 2048)
MASK = 4 * 2 * 512 * 512


def about(profile: Profile, words: str) -> list[Advice]:
    return [each for each in advise(profile, moment_of(profile), limit=99) if words in each.text]


def attention(
    copy: int, *, kind: str = "Attention", shape: tuple[int, ...] = SHAPE, copies: int = 1, kept: int = 0, wide: int = 0
) -> Profile:
    """A step of three layers, each of which keeps copies of so many bytes, and a float32 tensor; the linear layer in it
    one of its own.
    """
    modules = (
        Module(name="Net", kind="Net", calls=1, output_shape=(2, 10)),
        *(Module(name=f"Net.{i}", kind=kind, parent=0, calls=1, output_shape=shape) for i in range(3)),
        *(Module(name=f"Net.{i}.up", kind="Linear", parent=1 + i, calls=1, output_shape=WIDE) for i in range(3)),
    )
    story = Story()
    mask = story.alloc(MASK, Category.INPUT, Phase.OUTSIDE)
    rows = []
    for layer in (1, 2, 3):
        rows += [story.alloc(copy, Category.ACTIVATION, module=layer) for _ in range(copies)]
        rows += [story.alloc(kept, Category.ACTIVATION, module=layer)] if kept else []
        rows += [story.alloc(wide, Category.ACTIVATION, module=layer + 3)] if wide else []
    for row in reversed(rows):
        story.free(row, Phase.BACKWARD)
    story.free(mask, Phase.OUTSIDE)
    return story.profile(modules=modules)


def test_a_mask_of_which_each_layer_keeps_a_copy_is_to_be_made_in_half_precision() -> None:
    [found] = about(attention(MASK // 2), "attention mask")

    assert found.is_cause
    assert "each of 3 modules keeps a copy of it in half precision, 1.00 MiB" in found.text
    assert found.saves == 3 * MASK // 2 + MASK // 2  # the copies, and half of the mask itself


@pytest.mark.parametrize(
    "profile",
    [
        pytest.param(attention(MASK // 2 + 512), id="of another size"),
        pytest.param(attention(MASK // 2, kind="Linear"), id="what a linear layer is given"),
        pytest.param(attention(MASK // 2, copies=2), id="two in a layer"),
        pytest.param(attention(MASK // 2, kept=MASK), id="scores"),
        pytest.param(attention(MASK // 2, shape=(2, 512, 512)), id="as large as the output"),
        pytest.param(attention(MASK // 2, shape=(2, 500, 64)), id="no square"),
    ],
)
def test_what_may_be_no_copy_of_a_mask_is_not_told(profile: Profile) -> None:
    assert about(profile, "attention mask") == []


@pytest.mark.parametrize(("shape", "is_computed"), [(SHAPE, False), ((2, 500, 64), True)])
def test_autocast_has_no_figure_where_layers_may_cast_a_mask(shape: tuple[int, ...], is_computed: bool) -> None:
    [found] = about(attention(4 * 2 * 512 * 64, shape=shape, wide=4 * 2 * 512 * 2048), "torch.autocast")

    assert found.is_computed == is_computed
    assert ("where they cast a float32 mask, each keeps a copy" in found.text) != is_computed


def evaluation(forwards: int, *, replaces: bool, grows: bool = True) -> Profile:
    """A step of training, then outputs of 4 MiB; each joined with those before, or kept beside them."""
    story = Story()
    story.free(story.alloc(8 * MIB, Category.ACTIVATION), Phase.BACKWARD)
    last = -1
    for count in range(1, forwards + 1):
        story.begin(Phase.EVALUATION, grad=False)
        output = story.alloc(4 * MIB, Category.ACTIVATION, Phase.EVALUATION, module=0)
        kept = story.alloc(4 * MIB * (count if grows else 1), Category.OUTPUT, Phase.EVALUATION)
        if replaces and last >= 0:
            story.free(last, Phase.EVALUATION)
        last = kept
        story.free(output, Phase.EVALUATION)
    return story.profile()


def test_outputs_that_are_joined_with_those_before_are_to_be_moved_first() -> None:
    profile = evaluation(6, replaces=True)

    [found] = about(profile, "before they are joined")
    assert found.is_cause
    assert "move Net's outputs to the CPU" in found.text
    assert "44.0 MiB" in found.text  # five of them, and all six
    assert found.saves == (6 + 5 + 1) * 4 * MIB - 8 * MIB  # training is the peak then
    assert about(profile, "smaller batch in evaluation") == []


@pytest.mark.parametrize(
    "profile",
    [
        pytest.param(evaluation(2, replaces=True), id="two"),
        pytest.param(evaluation(6, replaces=False), id="all kept"),
        pytest.param(evaluation(6, replaces=True, grows=False), id="the last one only"),
    ],
)
def test_outputs_that_do_not_grow_by_one_are_not_joined(profile: Profile) -> None:
    assert about(profile, "before they are joined") == []
