"""What a report says of models, and parts of them, that run with gradients and need not, on profiles that are told."""

from __future__ import annotations

import pytest
import torch
from told_profiles import HEAD, MIB, MODULES, Story

import vramkit
from vramkit.reports.advice import advise
from vramkit.reports.moment import moment_of
from vramkit.reports.rules.advised import Advice
from vramkit.results.profile import Profile
from vramkit.tape.events import Category, Phase

UPS = (3, 5, 7)


def causes(profile: Profile) -> list[Advice]:
    return [each for each in advise(profile, moment_of(profile)) if each.is_cause]


def inner(*, keeps: tuple[int, ...], trains: bool = False, goes: Phase = Phase.FORWARD) -> Profile:
    """Steps of a model whose blocks work before its head: some of them keep what they make until all have returned."""
    story = Story()
    for step in range(3):
        story.begin(Phase.FORWARD, step=step)
        rows = []
        for module in UPS:
            if step == 0:
                story.alloc(4096, Category.PARAMETER, Phase.FORWARD, module=module, name=f"{MODULES[module].name}.w")
            made = story.alloc(16 * MIB, Category.TEMPORARY, module=module, step=step)
            rows += [made] if module in keeps else []
            if module not in keeps:
                story.free(made, Phase.FORWARD, step=step, module=module)
        own = story.alloc(8 * MIB, Category.ACTIVATION, module=HEAD, step=step)
        for row in rows:
            story.free(row, goes, step=step)
        story.free(own, Phase.BACKWARD, step=step)
        trained = [HEAD, *(UPS if trains else ())]
        grads = [
            story.alloc(4096, Category.GRADIENT, Phase.BACKWARD, module=each, step=step, name=f"{MODULES[each].name}.w")
            for each in trained
        ]
        story.begin(Phase.OPTIMIZER, step=step)
        for row in grads:
            story.free(row, Phase.OUTSIDE, step=step)
    return story.profile()


def test_a_part_of_a_model_whose_graph_no_backward_uses_is_to_run_without() -> None:
    [found] = causes(inner(keeps=UPS))

    assert found.text.startswith("run Net.blocks under torch.no_grad(): what 3 of its layers make is kept")
    assert found.saves // MIB == 16, "two of its tensors stay, what a layer is given and what it returns"


@pytest.mark.parametrize(
    "profile",
    [
        pytest.param(inner(keeps=UPS, trains=True), id="it gets gradients"),
        pytest.param(inner(keeps=UPS, goes=Phase.BACKWARD), id="a backward frees it"),
        pytest.param(inner(keeps=UPS[:1]), id="only an output is kept"),
    ],
)
def test_a_part_that_keeps_no_graph_is_not_told(profile: Profile) -> None:
    assert causes(profile) == []


def compared(*, frees_both: bool) -> Profile:
    """Steps in which a model makes a target, and then what is compared with it."""
    story = Story()
    for step in range(3):
        graphs = []
        for _ in range(2):
            story.begin(Phase.FORWARD, step=step)
            graphs.append([story.alloc(4 * MIB, Category.ACTIVATION, module=each, step=step) for each in UPS])
        for row in [*graphs[1], *(graphs[0] if frees_both else [])]:
            story.free(row, Phase.BACKWARD, step=step)
        for row in [] if frees_both else graphs[0]:
            story.free(row, Phase.OUTSIDE, step=step)
    return story.profile()


def test_of_a_models_forwards_only_those_that_no_backward_uses_are_to_run_without() -> None:
    [found] = causes(compared(frees_both=False))

    assert "of its 6 forwards 3 made graphs, and no backward used one" in found.text
    assert found.saves == 3 * 4 * MIB, "nothing of the target's is there while the other graph is made"
    assert causes(compared(frees_both=True)) == []


def test_a_graph_that_the_next_step_replaces_was_retained() -> None:
    story, before = Story(), list[int]()
    for step in range(3):
        story.begin(Phase.FORWARD, step=step)
        rows = [story.alloc(4 * MIB, Category.ACTIVATION, module=each, step=step) for each in UPS]
        for row in before:
            story.free(row, Phase.FORWARD, step=step)
        for each in reversed(UPS):
            passing = story.alloc(MIB, Category.TEMPORARY, Phase.BACKWARD, module=each, step=step)
            story.free(passing, Phase.BACKWARD, module=each, step=step)
        before = rows

    [found] = causes(story.profile())

    assert found.text.startswith("call backward() without retain_graph=True: 12.0 MiB of the graph of Net")
    # Two graphs at once; then one of them, and the backward's temporary.
    assert found.saves == 2 * 12 * MIB - (12 + 1) * MIB


@pytest.mark.virtual_gpu
def test_a_loss_that_is_kept_in_the_memory_of_its_terms_hands_gradients_on() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 1024), torch.nn.Dropout(0.1)).cuda()
    optimizer, loss_of = torch.optim.SGD(model.parameters(), lr=0.1), torch.nn.MSELoss()
    x, wanted, kept = torch.ones(640, 64, device="cuda"), torch.ones(640, 1024, device="cuda"), {}

    with vramkit.profile() as prof:
        for step in range(5):
            optimizer.zero_grad()
            kept[step // 4] = loss = loss_of(model(x), wanted)
            loss.backward()
            optimizer.step()

    assert loss.untyped_storage().nbytes() > 4, "nothing that a backward frees, and more than a number"
    assert not [each.text for each in causes(prof.result) if "no_grad" in each.text]
