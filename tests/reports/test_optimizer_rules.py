"""What an optimizer that keeps less would save, and a sparse gradient, by the size of each number; on told profiles."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from told_profiles import MIB, Story
from torch import nn

import vramkit
from vramkit.reports.advice import advise
from vramkit.reports.moment import moment_of
from vramkit.reports.rules.advised import Advice
from vramkit.tape.events import Category, Module, Phase

ROWS, WIDTH, USED = 1 << 16, 64, 32
NUMEL = ROWS * WIDTH


def advice(item_size: int, *, gradients: int = 1) -> dict[str, Advice]:
    """Of a step in which an embedding is trained by Adam, and a backward makes some gradients of its size."""
    modules = (
        Module(name="Net", kind="Net", calls=1, output_shape=(USED, 8)),
        Module(
            name="Net.words",
            kind="Embedding",
            parent=0,
            calls=1,
            parameters=item_size * NUMEL,
            numel=NUMEL,
            output_shape=(USED, WIDTH),
        ),
    )
    story, size, weight = Story(), item_size * NUMEL, "Net.words.weight"
    story.alloc(size, Category.PARAMETER, Phase.OUTSIDE, name=weight)
    story.alloc(item_size * USED * WIDTH, Category.ACTIVATION, Phase.FORWARD, module=1)
    story.alloc(size, Category.GRADIENT, Phase.BACKWARD, name=weight, module=1)
    for _ in range(gradients - 1):
        story.free(story.alloc(size, Category.TEMPORARY, Phase.BACKWARD, module=0), Phase.BACKWARD)
    for kind in ("exp_avg", "exp_avg_sq"):
        story.alloc(size, Category.OPTIMIZER_STATE, Phase.OPTIMIZER, name=f"{kind} of {weight}")
    profile = story.profile(modules=modules)
    return {" ".join(each.text.split()[:3]): each for each in advise(profile, moment_of(profile), limit=99)}


@pytest.mark.parametrize(("size", "saves"), [(MIB, 4 * MIB), (3 * MIB, None)])
def test_only_temporaries_as_large_as_parameters_are_those_of_a_step_for_many(size: int, saves: int | None) -> None:
    story = Story()
    for number in range(4):
        story.alloc(MIB, Category.PARAMETER, Phase.OUTSIDE, name=f"Net.{number}.weight")
    for row in [story.alloc(size, Category.TEMPORARY, Phase.OPTIMIZER) for _ in range(4)]:
        story.free(row, Phase.OPTIMIZER)
    profile = story.profile()

    found = {" ".join(each.text.split()[:3]): each.saves for each in advise(profile, moment_of(profile))}

    assert found.get("give the optimizer") == saves, "LBFGS, say, works on one vector of all parameters"


@pytest.mark.virtual_gpu
@pytest.mark.parametrize(
    ("kind", "options"),
    [("Adam", {}), ("AdamW", {"amsgrad": True}), ("SGD", {"weight_decay": 0.1}), ("Adagrad", {})],
)
def test_one_kernel_for_a_step_saves_what_is_said(kind: str, options: dict[str, Any]) -> None:
    many, fused = (stepped(kind, **options, fused=fused) for fused in (None, True))

    [said] = [each for each in about_temporaries(many) if each.is_computed]

    assert "fused=True" in said.text
    assert said.saves == pytest.approx(many.peak_allocated - fused.peak_allocated, rel=0.1)
    assert about_temporaries(fused) == []


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("kind", ["Adadelta", "RMSprop", "Adamax", "Rprop"])
def test_an_optimizer_without_such_a_kernel_is_told_of_no_figure(kind: str) -> None:
    many, single = (stepped(kind, foreach=foreach) for foreach in (None, False))

    [said] = about_temporaries(many)

    assert "foreach=False" in said.text
    assert not said.is_computed
    assert single.peak_allocated < many.peak_allocated
    with pytest.raises(TypeError, match="fused"):
        stepped(kind, fused=True)


@pytest.mark.virtual_gpu
def test_one_that_does_each_parameter_by_itself_has_nothing_to_be_told() -> None:
    assert about_temporaries(stepped("Adafactor")) == []


def stepped(kind: str, **options: Any) -> vramkit.MemoryResult:
    """Three steps of an optimizer, with a parameter that is half of the model."""
    widths = (512, 512, 512, 4096, 512, 512)
    model = nn.Sequential(*(nn.Linear(*pair) for pair in itertools.pairwise(widths))).cuda()
    optimizer = getattr(torch.optim, kind)(model.parameters(), **options)
    with vramkit.profile() as prof:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.zeros(8, 512, device="cuda")).sum().backward()
            optimizer.step()
    return prof.result


def about_temporaries(result: vramkit.MemoryResult) -> list[Advice]:
    return [each for each in advise(result, moment_of(result), limit=99) if "give the optimizer" in each.text]


def test_state_of_an_optimizer_that_another_one_replaced_can_go() -> None:
    story = Story()
    names = [f"Net.{number}.weight" for number in range(3)]
    for name in names:
        story.alloc(MIB, Category.PARAMETER, Phase.OUTSIDE, name=name)
    for step in range(3):
        story.begin(Phase.OPTIMIZER, step=step)
        for name in names if step % 2 == 0 else ():
            story.alloc(MIB, Category.OPTIMIZER_STATE, Phase.OPTIMIZER, step=step, name=f"exp_avg of {name}")
    profile = story.profile()

    [found] = [each for each in advise(profile, moment_of(profile)) if each.is_cause]

    assert found.text.startswith("delete an optimizer")
    assert found.saves == 3 * MIB


@pytest.mark.parametrize("item_size", [2, 4])
def test_a_state_in_eight_bits_saves_what_its_numbers_are_longer(item_size: int) -> None:
    found = advice(item_size)["use an 8-bit"]

    assert found.saves == 2 * (item_size * NUMEL - NUMEL - NUMEL // 64)
    assert found.text.endswith({2: "half", 4: "a quarter"}[item_size])


@pytest.mark.parametrize(
    ("kinds", "use"),
    [
        (("exp_avg", "exp_avg_sq"), "an 8-bit Adam (torchao, bitsandbytes)"),
        (("exp_avg",), "Lion8bit"),
        (("momentum_buffer",), "SGD8bit"),
        (("square_avg",), "RMSprop8bit"),
        (("sum",), "Adagrad8bit"),
        (("square_avg", "momentum_buffer"), None),  # RMSprop8bit keeps no momentum
        (("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), None),
        (("square_avg", "acc_delta"), None),
    ],
)
def test_a_state_in_eight_bits_is_said_of_optimizers_that_have_one(kinds: tuple[str, ...], use: str | None) -> None:
    story, weight = Story(), "Net.head.weight"
    story.alloc(4 * MIB, Category.PARAMETER, Phase.OUTSIDE, name=weight)
    for kind in kinds:
        story.alloc(4 * MIB, Category.OPTIMIZER_STATE, Phase.OPTIMIZER, name=f"{kind} of {weight}")
    profile = story.profile()

    found = [each for each in advise(profile, moment_of(profile), limit=99) if "its state takes" in each.text]

    assert [(each.saves, use in each.text) for each in found if use] == (
        [(len(kinds) * (3 * MIB - 4 * (MIB // 256)), True)] if use else []
    )
    assert bool(found) is bool(use)


@pytest.mark.parametrize("item_size", [2, 4])
def test_a_sparse_gradient_has_the_rows_of_its_batch(item_size: int) -> None:
    found = advice(item_size)["give Net.words sparse=True,"]

    assert found.saves == item_size * NUMEL - USED * (8 + item_size * WIDTH)
    assert f"at most {USED:,} of its {ROWS:,} rows" in found.text


def test_a_weight_that_a_product_uses_too_has_no_sparse_gradient() -> None:
    # A gradient of each use, which are added up: the weight is tied to the last layer, whoever calls that.
    assert "give Net.words sparse=True," not in advice(4, gradients=2)
    assert advice(4)["give Net.words sparse=True,"].saves > MIB
