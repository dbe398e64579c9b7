"""Predictions of what ``torch.compile`` has compiled."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo import config as dynamo_config
from torch._dynamo.utils import counters
from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config

import vramkit
from vramkit.programs.arguments import program_of
from vramkit.programs.packing import pack
from vramkit.programs.unpacking import unpack
from vramkit.torch_internals import compiler_settings
from vramkit.virtual_gpu.cache import cache_folder

BATCH = torch.zeros(16, 64)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.down(nn.functional.gelu(self.norm(self.up(x))))
        return output


class Fused(nn.Module):
    """One kernel each way, of which Inductor has several variants."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4096)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(self.norm(x) * self.scale)


def by_function() -> dict[str, Any]:
    model = Net()
    loss = torch.compile(lambda x: model(x).sum(), backend="eager")
    return {"model": model, "step": lambda batch: loss(batch.to("cuda")).backward()}


def by_method() -> dict[str, Any]:
    model = Net()
    model.compile(backend="eager")
    return {"model": model}


def by_wrapper() -> dict[str, Any]:
    return {"model": torch.compile(Net(), backend="eager")}


def in_the_step() -> dict[str, Any]:
    """Of which nothing can be seen before it runs."""
    model = Net()
    return {
        "model": model,
        "step": lambda batch: torch.compile(model, backend="eager")(batch.to("cuda")).sum().backward(),
    }


HOW = [by_function, by_method, by_wrapper]


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("how", HOW)
def test_what_was_compiled_in_any_way_is_compiled_in_the_prediction(how: Callable[[], dict[str, Any]]) -> None:
    estimate = vramkit.estimate(**how(), batch=BATCH, engine="virtual")

    calls = {usage.name: usage.calls for usage in estimate.by_module[0].walk()}
    assert [calls[f"Net.{layer}"] for layer in ("up", "norm", "down")] == [0, 0, 0]
    assert any("torch.compile has compiled Net" in note for note in estimate.notes) == (how is not by_function)


@pytest.mark.parametrize("how", HOW)
def test_fakes_run_it_as_it_is_written_and_say_so(how: Callable[[], dict[str, Any]]) -> None:
    estimate = vramkit.estimate(**how(), batch=BATCH, engine="fake")

    calls = {usage.name: usage.calls for usage in estimate.by_module[0].walk()}
    assert [calls[f"Net.{layer}"] for layer in ("up", "norm", "down")] == [3, 3, 3]
    assert [note for note in estimate.notes if "torch.compile" in note] == [
        note for note in estimate.notes if note.startswith("What torch.compile would compile")
    ]


@pytest.mark.virtual_gpu
def test_the_figures_do_not_depend_on_what_the_compilers_cache_has() -> None:
    # What was never compiled before: the number is a part of the kernels.
    model = torch.compile(Fused(scale=1 + time.time_ns() % 10**12 / 10**12))

    cold, warm = (
        vramkit.estimate(model, torch.zeros(512, 4096), engine="virtual", gpu="a100-40gb", steps=2) for _ in range(2)
    )

    assert (cold.peak_allocated, cold.peak_reserved) == (warm.peak_allocated, warm.peak_reserved)
    [told] = set(cold.notes) - set(warm.notes)
    assert "One with an empty cache measures variants of them first" in told
    allocated, reserved = (int(each.split(" B)")[0].replace(",", "")) for each in told.split("(")[1:])
    assert allocated > cold.peak_allocated or reserved > cold.peak_reserved


@pytest.mark.virtual_gpu
def test_a_prediction_compiles_into_the_cache_of_virtual_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/users/inductor")
    expected = str(cache_folder() / "compiled" / "inductor")
    model = nn.Linear(64, 64)

    def step(batch: torch.Tensor) -> None:
        model(batch.to("cuda")).sum().backward()
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == expected

    vramkit.estimate(model, BATCH, step=step, engine="virtual", steps=1)


@pytest.mark.virtual_gpu
def test_a_prediction_compiles_with_what_is_set_for_the_compiler() -> None:
    model = nn.Linear(64, 64)

    def step(batch: torch.Tensor) -> None:
        model(batch.to("cuda")).sum().backward()
        assert functorch_config.activation_memory_budget == 0.25

    with functorch_config.patch(activation_memory_budget=0.25):
        vramkit.estimate(model, BATCH, step=step, engine="virtual", steps=1)


@pytest.mark.virtual_gpu
def test_a_prediction_says_which_settings_of_the_compiler_it_went_without() -> None:
    with inductor_config.patch(post_grad_custom_post_pass=print):
        estimate = vramkit.estimate(torch.compile(Net(), backend="eager"), BATCH, engine="virtual", steps=1)

    [note] = [each for each in estimate.notes if "torch.compile ran without" in each]
    assert "torch._inductor.config.post_grad_custom_post_pass" in note


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("how", [by_wrapper, in_the_step])
def test_a_second_batch_size_is_not_compiled_in_silence(how: Callable[[], dict[str, Any]]) -> None:
    compiled = vramkit.estimate(**how(), batch=BATCH, engine="virtual", steps=1)
    eager = vramkit.estimate(Net(), BATCH, engine="virtual", steps=1)

    eager.at(8)
    with pytest.warns(UserWarning, match="compiles the program for each batch size"):
        compiled.at(8)
    compiled.at(4)  # said once


@pytest.mark.virtual_gpu
def test_the_search_on_a_device_says_that_it_compiles_for_sizes_that_vary() -> None:
    model = torch.compile(Net().cuda(), backend="eager")

    with pytest.warns(UserWarning, match="sizes that vary") as told:
        vramkit.auto_batch_size(model, BATCH, max_batch_size=64)  # type: ignore[arg-type] # torch's type of it

    assert len([each for each in told if "sizes that vary" in str(each.message)]) == 1


@pytest.mark.virtual_gpu
def test_the_search_on_a_device_sees_what_a_step_compiles_and_counts_no_buffers_of_its_measuring() -> None:
    torch._dynamo.reset()
    model = nn.Linear(64, 64).cuda()
    measured = []

    def measuring(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., object]:
        torch.empty(48 << 20, device="cuda", dtype=torch.uint8)
        counters["inductor"]["benchmarking.InductorBenchmarker.benchmark"] += 1
        measured.append(graph)
        run: Callable[..., object] = graph.forward
        return run

    forward = torch.compile(lambda batch: model(batch.to("cuda")), backend=measuring)

    def step(batch: torch.Tensor) -> None:
        forward(batch).sum().backward()

    with pytest.warns(UserWarning, match="sizes that vary"):
        found = vramkit.auto_batch_size(model, BATCH, step=step, max_batch_size=64)

    assert len(measured) == 2  # one size, and sizes that vary
    assert max(trial.peak_allocated for trial in found.trials) < 48 << 20


def compiled_itself(model: nn.Module) -> nn.Module:
    model.compile(backend="eager", dynamic=True)
    return model


@pytest.mark.parametrize("how", [compiled_itself, lambda model: torch.compile(model, backend="eager", dynamic=True)])
def test_what_is_compiled_for_sizes_that_vary_is_so_where_it_is_run(how: Callable[[nn.Module], nn.Module]) -> None:
    torch._dynamo.reset()
    program = program_of("", how(Net()), BATCH, optimizer=None, step=None, loss=None, autocast=None, steps=1)
    [model] = unpack(pack(program).content).program.models.values()
    counters.clear()

    for rows in (16, 8):
        model(torch.zeros(rows, 64))

    assert counters["stats"]["unique_graphs"] == 1


def test_what_is_compiled_runs_where_it_arrives_with_compiled_autograd_on() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(Net(), backend="eager")
    program = program_of("", compiled, BATCH, optimizer=None, step=None, loss=None, autocast=None, steps=1)

    with dynamo_config.patch(compiled_autograd=True):
        [model] = unpack(pack(program).content).program.models.values()
        counters.clear()
        model(torch.zeros(16, 64))

    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.skipif("isolate_recompiles" not in signature(torch.compile).parameters, reason="this torch isolates none")
def test_compilations_that_are_isolated_are_so_where_they_arrive() -> None:
    compiled = torch.compile(Net(), backend="eager", isolate_recompiles=True)
    program = program_of("", compiled, BATCH, optimizer=None, step=None, loss=None, autocast=None, steps=1)

    [model] = unpack(pack(program).content).program.models.values()

    assert vars(model)["dynamo_ctx"]._isolate_recompiles_id >= 0


def test_settings_of_the_compiler_are_read_and_functions_in_them_told_of() -> None:
    with inductor_config.patch({"triton.cudagraphs": True, "post_grad_custom_post_pass": print}):
        found, functions = compiler_settings.read(), compiler_settings.unsendable()

    assert found["torch._inductor.config"]["triton.cudagraphs"] is True
    assert functions == ["torch._inductor.config.post_grad_custom_post_pass"]


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch 2.13 does so itself
@pytest.mark.parametrize("mode", ["default", "max-autotune", "max-autotune-no-cudagraphs"])
def test_what_is_to_choose_by_time_is_known(mode: str) -> None:
    model = torch.compile(Net(), mode=mode)
    program = program_of("", model, BATCH, optimizer=None, step=None, loss=None, autocast=None, steps=1)

    assert pack(program).is_autotuned == mode.startswith("max-autotune")
