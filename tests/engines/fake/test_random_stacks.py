"""Random models: what is predicted is what is measured, to the byte."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from random_stacks import OPTIMIZERS, FreshProcesses, Stack, StackProgram
from strategies import stacks

import vramkit
from vramkit import closed_form
from vramkit.tape.events import Category, Phase, Tape

relaxed = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def fresh() -> Iterator[FreshProcesses]:
    processes = FreshProcesses("a100-40gb")
    yield processes
    processes.close()


@pytest.mark.virtual_gpu
@relaxed
@given(stacks(dtypes=("float32", "float32", "bfloat16", "float16"), autocast=("", "bfloat16", "float16")))
def test_the_virtual_engine_predicts_what_a_fresh_process_shows(fresh: FreshProcesses, program: StackProgram) -> None:
    autocast = getattr(torch, program.autocast) if program.autocast else None

    estimate = vramkit.estimate(
        Stack(program), program.inputs(), optimizer=OPTIMIZERS[program.optimizer], autocast=autocast, gpu="a100-40gb"
    )

    assert (estimate.peak_allocated, estimate.peak_reserved) == fresh.peaks(program)


def trained_on_the_cpu(
    program: StackProgram, model: Stack, sample: torch.Tensor, steps: int
) -> tuple[torch.optim.Optimizer, vramkit.Profile]:
    optimizer = OPTIMIZERS[program.optimizer](model.parameters())
    with vramkit.profile(model, optimizer, device="cpu") as prof:
        for _ in range(steps):
            batch = sample.clone()
            model(batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            del batch
    assert prof.result is not None
    return optimizer, prof.result


def kept_by_forwards(tape: Tape) -> list[dict[Category, int]]:
    """What was asked for and alive at the end of each step's forward, by category; bytes."""
    categories = (Category.PARAMETER, Category.BUFFER, Category.GRADIENT, Category.INPUT, Category.ACTIVATION)
    is_forward, step = tape.events["phase"] == Phase.FORWARD, tape.events["step"]
    found = []
    for number in np.unique(step[is_forward]):
        alive = tape.allocations[tape.alive_at(np.flatnonzero(is_forward & (step == number)).max())]
        sizes = {each: int(alive["requested"][alive["category"] == each].sum()) for each in categories}
        found.append(sizes)
    return found


# Of these CUDA's kernels keep something else than the CPU's: masks of a byte, reserves of cuDNN's, sums of attention,
# copies of what lies otherwise, which bag an index belongs to.
OF_CUDA = (
    "dropout", "batch norm", "instance norm", "rms norm", "attention", "grouped", "encoder", "lstm", "gru", "rnn",
    "bags",
)  # fmt: skip


@relaxed
@given(stacks(dtypes=("float32",), max_batch=8, without=OF_CUDA))
def test_storages_of_fakes_are_those_of_a_training_on_the_cpu(program: StackProgram) -> None:
    model, sample = Stack(program), program.inputs()

    predicted = vramkit.estimate(model, sample, optimizer=OPTIMIZERS[program.optimizer], engine="fake", gpu="a100-40gb")

    _, profile = trained_on_the_cpu(program, model, sample, steps=3)
    measured = kept_by_forwards(profile.tape)
    assert len(measured) == 3
    assert kept_by_forwards(predicted.tape) == measured


@relaxed
@given(stacks(dtypes=("float32", "float64"), max_batch=8))
def test_the_closed_forms_are_what_a_training_on_the_cpu_holds(program: StackProgram) -> None:
    model, sample = Stack(program), program.inputs()

    optimizer, profile = trained_on_the_cpu(program, model, sample, steps=2)

    held = {category: int(profile.timeline.of(category).max()) for category in Category}
    assert closed_form.parameters(model) == held[Category.PARAMETER]
    assert closed_form.buffers(model) == held[Category.BUFFER]
    assert closed_form.gradients(model) == held[Category.GRADIENT]
    assert closed_form.optimizer_state(optimizer, device="cpu") == held[Category.OPTIMIZER_STATE]
    assert closed_form.inputs(sample) == held[Category.INPUT]
