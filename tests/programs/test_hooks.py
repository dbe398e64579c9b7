"""Hooks of the user's: a prediction calls them, or says that it does not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import hooked_programs
import pytest
import torch
from subprocesses import run_on
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import vramkit

FRESH = """
import hooked_programs, predicted_programs
result = predicted_programs.run_as_users_do(hooked_programs.PROGRAMS[{name!r}]())
"""


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("name", hooked_programs.PROGRAMS)
def test_hooks_take_in_a_prediction_what_they_take_in_a_fresh_process(name: str) -> None:
    measured = run_on("a100-80gb", FRESH.format(name=name))

    for engine in ("virtual", "fake"):
        estimate = vramkit.estimate(**hooked_programs.PROGRAMS[name](), gpu="a100-80gb", engine=engine)
        assert [estimate.peak_allocated, estimate.peak_reserved] == measured
        assert estimate.notes == ()


def test_hooks_stay_where_they_are() -> None:
    program = hooked_programs.on_a_parameter()
    parameters = [*program["model"].parameters()]
    before = [dict(each._backward_hooks) for each in parameters]

    vramkit.estimate(**program, gpu="t4", engine="fake")

    assert [dict(each._backward_hooks) for each in parameters] == before
    assert before[0]


def test_a_hook_that_cannot_be_sent_is_left_out_with_a_note_and_the_others_stay() -> None:
    program = hooked_programs.on_a_parameter()
    lock = threading.Lock()
    before = vramkit.estimate(**program, gpu="t4", engine="fake")

    def looks_at_a_lock(gradient: torch.Tensor) -> None:
        lock.locked()

    program["model"][0].weight.register_hook(looks_at_a_lock)
    estimate = vramkit.estimate(**program, gpu="t4", engine="fake")

    assert "looks_at_a_lock): they can't be sent" in " ".join(estimate.notes)
    assert estimate.peak_allocated == before.peak_allocated


def test_a_function_of_torchs_and_what_only_an_optimizer_trains_have_hooks_too() -> None:
    model = nn.Linear(1024, 1024).requires_grad_(False)
    latent = nn.Parameter(torch.zeros(1024, 1024, device="cuda" if torch.cuda.is_available() else "cpu"))
    optimizer = torch.optim.SGD([latent])

    def step(batch: torch.Tensor) -> None:
        model(latent * batch.to("cuda")).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    def asked() -> int:
        found = vramkit.estimate(
            model, torch.zeros(1024, 1024), optimizer=optimizer, step=step, gpu="t4", engine="fake"
        )
        return int(found.tape.allocations["requested"].sum())

    before = asked()
    latent.register_hook(nn.functional.dropout)

    assert asked() >= before + 3 * latent.nbytes


@pytest.mark.virtual_gpu
def test_a_search_on_the_device_calls_a_hook_once() -> None:
    model = nn.Linear(64, 64).to("cuda")
    calls: list[int] = []
    model.weight.register_hook(lambda gradient: calls.append(0))
    forwards: list[int] = []
    model.register_forward_hook(lambda *_: forwards.append(0))

    vramkit.auto_batch_size(model, torch.zeros(4, 64), max_batch_size=64)

    assert len(calls) == len(forwards) > 0


def _on_every_module(_: Any) -> Callable[[], object]:
    return nn.modules.module.register_module_forward_hook(lambda *_: None).remove


def _on_every_optimizer(_: Any) -> Callable[[], object]:
    return register_optimizer_step_post_hook(lambda *_: None).remove


def _in_place_of_step(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    optimizer.step = lambda closure=None: None  # type: ignore[method-assign] # on purpose
    return lambda: None


@pytest.mark.parametrize(
    ("put", "words"),
    [
        (_on_every_module, "Hooks on all modules"),
        (_on_every_optimizer, "Hooks on all optimizers"),
        (_in_place_of_step, "in place of an optimizer's step()"),
    ],
)
def test_what_is_not_of_the_program_is_named(put: Callable[[Any], Callable[[], object]], words: str) -> None:
    model = nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments: dict[str, Any] = {"optimizer": optimizer, "gpu": "t4", "engine": "fake"}
    assert words not in " ".join(vramkit.estimate(model, torch.zeros(8, 64), **arguments).notes)

    remove = put(optimizer)
    try:
        estimate = vramkit.estimate(model, torch.zeros(8, 64), **arguments)
    finally:
        remove()

    assert words in " ".join(estimate.notes)


def test_a_scheduler_replaces_nothing() -> None:
    model = nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)

    estimate = vramkit.estimate(model, torch.zeros(8, 64), optimizer=optimizer, gpu="a100-80gb", engine="fake")

    assert estimate.notes == ()


@pytest.mark.virtual_gpu
def test_a_generator_of_the_cpu_stays_one() -> None:
    model = nn.Linear(64, 64)
    generator = torch.Generator().manual_seed(5)

    def step(batch: torch.Tensor) -> None:
        assert torch.equal(torch.rand(3, generator=generator), expected)
        model(batch.to("cuda")).sum().backward()
        generator.manual_seed(5)

    expected = torch.rand(3, generator=torch.Generator().manual_seed(5))
    for engine in ("virtual", "fake"):
        assert vramkit.estimate(model, torch.zeros(8, 64), step=step, gpu="t4", engine=engine).peak_allocated


@pytest.mark.skipif(torch.cuda.is_available(), reason="a device is there, so that the CPU is meant")
def test_a_device_that_is_taken_as_cuda_is_named() -> None:
    model = nn.Linear(64, 64)
    device = torch.device("cpu")

    def step(batch: torch.Tensor) -> None:
        model(batch.to(device)).sum().backward()

    estimate = vramkit.estimate(model, torch.zeros(8, 64), step=step, gpu="t4", engine="fake")

    assert 'A torch.device("cpu") was taken as "cuda"' in " ".join(estimate.notes)
