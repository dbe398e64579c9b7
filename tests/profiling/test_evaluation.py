"""Evaluation measured: it is a phase and no step, and its memory is told apart from training's."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vramkit
from vramkit.reports.advice import advise
from vramkit.reports.moment import moment_of, peaks_of
from vramkit.results.profile import Profile
from vramkit.tape.events import Category, Evaluation, Phase

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.virtual_gpu)]
WIDTH, CLASSES = 256, 1024


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(64, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES))


def loss_of(model: nn.Module, count: int) -> torch.Tensor:
    device = next(model.parameters()).device
    return F.cross_entropy(
        model(torch.zeros(count, 64, device=device)), torch.zeros(count, dtype=torch.long).to(device)
    )


def measured(
    device: str, evaluate: Callable[[nn.Module, int], object], *, steps: int = 4, rounds: int = 1, count: int = 512
) -> Profile:
    """Training steps with 8 rows, then an evaluation of 3 batches of ``count``, and that so many times."""
    model = Net().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with vramkit.profile(model, optimizer) as prof:
        for _ in range(rounds):
            model.train()
            for _ in range(steps):
                optimizer.zero_grad()
                loss_of(model, 8).backward()
                optimizer.step()
            model.eval()
            for _ in range(3):
                evaluate(model, count)
    return prof.result


@torch.no_grad()
def without_gradients(model: nn.Module, count: int) -> None:
    loss_of(model, count)


@torch.inference_mode()
def in_inference_mode(model: nn.Module, count: int) -> None:
    loss_of(model, count)


@pytest.mark.parametrize("evaluate", [without_gradients, in_inference_mode])
@pytest.mark.parametrize("device", DEVICES)
def test_evaluation_is_a_phase_of_its_own_and_no_step(device: str, evaluate: Callable[[nn.Module, int], None]) -> None:
    profile = measured(device, evaluate, rounds=2)

    assert [step.step for step in profile.steps] == list(range(8))
    assert {each.phase for step in profile.steps for each in step.phases} <= set(Phase) - {Phase.EVALUATION}
    assert [each.step for each in profile.phases if each.phase is Phase.EVALUATION] == [4, 7]
    assert profile.tape.evaluations == (Evaluation(module=0, forwards=6, with_graph=0),)
    table, modules = profile.tape.allocations, profile.tape.modules
    hidden = table[(table["requested"] == 512 * WIDTH * 4) & (table["phase"] == Phase.EVALUATION)]
    made_in = [modules[index].name for index in hidden["module"]]
    assert made_in == ["Net.0", "Net.1"] * 6
    assert set(hidden["category"]) == {Category.TEMPORARY}, "nothing is kept for a backward"


@pytest.mark.parametrize("device", DEVICES)
def test_the_loss_of_evaluation_belongs_to_it(device: str) -> None:
    profile = measured(device, without_gradients)

    training, evaluation = peaks_of(profile)
    assert training is not None
    assert evaluation is not None
    # The logits and their logarithms, of which cross_entropy keeps none.
    assert evaluation.allocated == profile.peak_allocated
    assert evaluation.allocated - profile.final.allocated > 2 * 512 * CLASSES * 4
    assert max(step.peak_allocated for step in profile.steps) < evaluation.allocated - 2 * 512 * WIDTH * 4


@pytest.mark.parametrize("device", DEVICES)
def test_graphs_of_evaluation_are_told_with_their_number_and_bytes(device: str) -> None:
    losses: list[torch.Tensor] = []

    profile = measured(device, lambda model, count: losses.append(loss_of(model, count)))

    assert len(profile.steps) == 4
    assert profile.tape.evaluations == (Evaluation(module=0, forwards=3, with_graph=3),)
    table, moment = profile.tape.allocations, moment_of(profile)
    of_evaluation = (table["phase"] == Phase.EVALUATION) & (table["category"] == Category.ACTIVATION) & moment.alive
    blocks = sorted(table["block"][of_evaluation].tolist())
    kept = sum(blocks)
    # What Tanh and cross_entropy keep, of each batch; the last one's loss is still being computed, or has just been.
    assert kept >= 3 * 512 * WIDTH * 4 + 2 * 512 * CLASSES * 4
    first = advise(profile, moment)[0]
    assert first.text.startswith("evaluate Net under torch.no_grad(): the graphs of 3 forwards of Net are alive")
    assert kept - sum(blocks[-2:]) <= first.saves < kept, "a batch's logits and what is computed of them stay"


@pytest.mark.virtual_gpu
def test_no_grad_saves_about_what_is_said() -> None:
    losses: list[torch.Tensor] = []

    with_graphs = measured("cuda", lambda model, count: losses.append(loss_of(model, count)), count=4096)
    losses.clear()
    without = measured("cuda", without_gradients, count=4096)

    said = advise(with_graphs, moment_of(with_graphs))[0].saves
    measured_difference = with_graphs.peak_allocated - without.peak_allocated
    assert said == pytest.approx(measured_difference, rel=0.1)


@pytest.mark.virtual_gpu
def test_an_evaluation_that_needs_more_than_training_is_told_without_a_figure() -> None:
    profile = measured("cuda", without_gradients, count=4096)

    training, _ = peaks_of(profile)
    assert training is not None
    [advice] = [each for each in advise(profile, moment_of(profile)) if not each.is_computed]
    assert advice.text.startswith("use a smaller batch in evaluation")
    assert advice.saves == profile.peak_allocated - training.allocated
    text = " ".join(profile.report().split())
    assert "over 4 steps" in text
    assert "in the evaluation of Net" in text or "in the evaluation, after step 4 of 4" in text
    assert "halve the batch" not in text
    assert "accumulate" not in text


@pytest.mark.virtual_gpu
def test_running_out_in_evaluation_is_told_as_that(gpu: vramkit.virtual_gpu.VirtualGPU) -> None:
    gc.collect()
    torch.cuda.empty_cache()  # what other tests left there would serve this one
    free, total = torch.cuda.mem_get_info()
    gpu.set_memory(total - free + (96 << 20))
    try:
        with pytest.raises(torch.OutOfMemoryError) as raised:
            measured("cuda", without_gradients, count=(128 << 20) // (4 * CLASSES))
    finally:
        gpu.set_memory(None)

    told = " ".join(str(raised.value.__notes__[0]).split())
    assert re.search(r"were asked for in the evaluation( of Net\.\d)?, after step 4 of 4", told)
    assert "over 4 steps" in told
    assert "use a smaller batch in evaluation" in told


@pytest.mark.parametrize("gradients", [torch.no_grad, nullcontext])
@pytest.mark.parametrize("device", DEVICES)
def test_a_teacher_in_every_step_is_part_of_the_steps(device: str, gradients: Callable[[], object]) -> None:
    teacher, student = Net().to(device).eval().requires_grad_(False), Net().to(device)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with vramkit.profile([teacher, student], optimizer) as prof:
        for _ in range(3):
            with gradients():  # type: ignore[attr-defined] # both are context managers
                wanted = teacher(torch.zeros(8, 64, device=device))
            optimizer.zero_grad()
            (student(torch.zeros(8, 64, device=device)) - wanted).square().sum().backward()
            optimizer.step()

    assert {each.phase for each in prof.result.phases} & {Phase.FORWARD, Phase.EVALUATION} == {Phase.FORWARD}
    assert prof.result.tape.evaluations == ()
    assert len(prof.result.steps) == 3


@pytest.mark.parametrize("device", DEVICES)
def test_steps_of_inference_are_forwards_and_said_to_be_evaluation(device: str) -> None:
    model = Net().to(device)
    with vramkit.profile(model) as prof, torch.no_grad():
        for _ in range(3):
            model(torch.zeros(8, 64, device=device))

    assert [[each.phase for each in step.phases] for step in prof.result.steps[1:]] == [[Phase.EVALUATION]] * 2
    assert "over 3 steps of evaluation" in prof.result.report()
