"""``vramkit.auto_batch_size`` on the virtual GPU, held against fresh processes, and what it says to bad input."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
import torch
from subprocesses import run_on
from torch import nn

import vramkit

SMALL = "2 GiB"  # a capacity that searches fill with batches of some hundreds

FIND = """
import torch, vramkit
from fitted_programs import FITTED
program = FITTED[{name!r}]()
program["model"].to("cuda")
found = vramkit.auto_batch_size(**program)
beyond = [trial.batch_size for trial in found.trials if not trial.is_probe]
result = [found.batch_size, found.max_batch_size, len(beyond), torch.cuda.memory_stats()["num_ooms"], found.verified]
"""
TRUTH = """
import torch
from fitted_programs import FITTED, outcome
torch.set_num_threads(1)
result = [outcome(FITTED[{name!r}](), size) == "fits" for size in ({size}, {size} + {more})]
"""


def mlp(width: int = 1024) -> nn.Module:
    return nn.Sequential(nn.Linear(4096, width), nn.ReLU(), nn.BatchNorm1d(width), nn.Linear(width, 10))


def batch(rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(rows, 4096), torch.zeros(rows, dtype=torch.long)


def loss(output: torch.Tensor, given: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(output, given[1])


def find(model: nn.Module | None = None, data: object = None, **more: Any) -> vramkit.BatchSizeResult:
    arguments = {"optimizer": torch.optim.Adam, "loss": loss, "max_batch_size": 4096, **more}
    if "step" in arguments:
        del arguments["loss"], arguments["optimizer"]
    return vramkit.auto_batch_size(mlp() if model is None else model, batch() if data is None else data, **arguments)


@pytest.fixture
def sized(gpu):
    """Sets the device's memory."""
    torch.cuda.get_device_properties(0)  # torch keeps what it sees first, for every test after this one
    yield gpu.set_memory
    gpu.set_memory(None)


@pytest.fixture
def small(sized):
    sized(SMALL)


# -- the answer --------------------------------------------------------------------------------------------------------


@pytest.mark.virtual_gpu
@pytest.mark.parametrize(("name", "more"), [("seed mlp", 1), ("u-net", 2)])
def test_the_largest_batch_runs_in_a_fresh_process_and_a_larger_one_does_not(name, more):
    # By how much larger: cuDNN takes other plans for another batch, so that a forecast may be a row of images off.
    _, most, beyond, failures, verified = run_on("t4", FIND.format(name=name))

    assert run_on("t4", TRUTH.format(name=name, size=most, more=more)) == [True, False]
    assert beyond <= 3
    assert failures == 0
    assert verified


@pytest.mark.virtual_gpu
def test_states_that_cudnn_makes_once_and_keeps_lead_no_search_out_of_memory():
    # They stay in this process, so that a fresh one may fit some rows more.
    _, most, _, failures, verified = run_on("t4", FIND.format(name="lstm dropout"))

    assert failures == 0
    assert verified
    assert run_on("t4", TRUTH.format(name="lstm dropout", size=most, more=1))[0]


@pytest.mark.virtual_gpu
def test_both_answers_were_run_and_keep_within_their_limits(small):
    found = find(mlp().to("cuda"), max_batch_size=None)

    peaks = {trial.batch_size: trial.peak_reserved for trial in found.trials if trial.fits}
    assert int(found) == found.batch_size < found.max_batch_size
    assert peaks[found.batch_size] == found.peak_reserved <= 0.8 * found.capacity
    assert 0.8 * found.capacity < peaks[found.max_batch_size] <= found.capacity
    assert found.verified
    assert found.capacity <= 2 << 30
    assert all(trial.kind == "measured" for trial in found.trials)


@pytest.mark.virtual_gpu
def test_what_other_programs_hold_is_not_counted_as_free(small):
    alone = find(mlp().to("cuda"), max_batch_size=None)
    held = torch.empty(512 << 20, dtype=torch.uint8, device="cuda")

    beside = find(mlp().to("cuda"), max_batch_size=None)

    assert beside.max_batch_size < 0.8 * alone.max_batch_size
    del held


@pytest.mark.virtual_gpu
def test_trials_are_reported_as_they_happen():
    trials = []

    found = find(mlp().to("cuda"), on_trial=trials.append)

    assert tuple(trials) == found.trials


@pytest.mark.virtual_gpu
def test_an_effective_batch_is_accumulated():
    found = find(mlp().to("cuda"), max_batch_size=64, effective_batch_size=256)

    assert (found.batch_size, found.accumulation_steps) == (64, 4)


@pytest.mark.virtual_gpu
def test_no_batch_is_larger_than_the_effective_one():
    found = find(mlp().to("cuda"), effective_batch_size=50, multiple_of=8)

    assert found.batch_size == found.max_batch_size == 48


@pytest.mark.virtual_gpu
def test_inside_a_profile_nothing_is_searched():
    model = mlp().to("cuda")

    with vramkit.profile():
        with pytest.raises(vramkit.UsageError, match="before the profile begins"):
            find(model)
        found = find(model, gpu="rtx4090", max_batch_size=16)  # which runs nothing here

    assert found.batch_size == 16


@pytest.mark.virtual_gpu
def test_a_callable_makes_batches_of_every_size_that_is_tried():
    asked = []

    def make(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(size)
        return batch(size)

    found = find(mlp().to("cuda"), make, max_batch_size=48, multiple_of=8)

    assert found.batch_size == 48
    assert {trial.batch_size for trial in found.trials} == {*asked}
    assert all(size % 8 == 0 for size in asked)


@pytest.mark.virtual_gpu
def test_a_step_that_leaves_the_batch_where_it_is_gets_it_on_the_device():
    model = mlp().to("cuda")

    found = find(model, step=lambda given: model(given[0]).sum().backward(), max_batch_size=64)

    assert found.batch_size == 64
    assert any("on the GPU" in note for note in found.notes)


@pytest.mark.virtual_gpu
def test_a_sample_on_the_device_gives_batches_on_the_device():
    model = mlp().to("cuda")

    def step(given: tuple[torch.Tensor, torch.Tensor]) -> None:
        assert given[0].is_cuda
        model(given[0]).sum().backward()

    found = find(model, tuple(each.to("cuda") for each in batch()), step=step, max_batch_size=64)

    assert found.batch_size == 64
    assert not found.notes


@pytest.mark.virtual_gpu
def test_a_model_on_the_host_is_there_again_afterwards():
    model = mlp()
    places = [parameter.data_ptr() for parameter in model.parameters()]

    find(model, max_batch_size=64)

    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert [parameter.data_ptr() for parameter in model.parameters()] == places


@pytest.mark.virtual_gpu
def test_a_workspace_that_was_there_is_there_again(gpu):
    model = mlp().to("cuda")
    model(torch.zeros(2, 4096, device="cuda")).sum().backward()
    model.zero_grad()
    before = torch.cuda.memory_allocated()

    find(model, max_batch_size=16)

    assert torch.cuda.memory_allocated() == before


@pytest.mark.virtual_gpu
def test_what_a_step_held_when_it_failed_on_another_device_is_not_held_by_its_next_run():
    model, size = mlp().to("cuda"), 256 << 20

    def step(given: tuple[torch.Tensor, torch.Tensor]) -> None:
        held = torch.empty(size, dtype=torch.uint8, device="cuda")
        nn.functional.cross_entropy(model(given[0].to("cuda")), given[1]).backward()
        del held

    found = find(model, step=step, max_batch_size=8)

    assert any("on the GPU" in note for note in found.notes)
    assert size < found.trials[0].peak_allocated < 2 * size


@pytest.mark.virtual_gpu
def test_a_default_device_changes_nothing():
    model, data = mlp().to("cuda"), batch()
    with torch.device("cuda"):
        found = find(model, data, max_batch_size=16)
        needed = vramkit.estimate(model, data, loss=loss, batch_size=16, gpu="t4")

    assert found.batch_size == 16
    assert needed.peak_allocated == vramkit.estimate(model, data, loss=loss, batch_size=16, gpu="t4").peak_allocated


@pytest.mark.virtual_gpu
def test_a_process_without_a_console_gets_an_answer(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)

    assert int(find(mlp().to("cuda"), max_batch_size=8)) == 8


@pytest.mark.virtual_gpu
def test_numbers_of_numpy_are_numbers():
    found = find(
        mlp().to("cuda"), multiple_of=np.int64(8), max_batch_size=np.int32(20), memory_fraction=np.float32(0.5)
    )

    assert found.batch_size == 16
    assert {type(found.batch_size), *(type(trial.batch_size) for trial in found.trials)} == {int}


# -- no device ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["fake", pytest.param("virtual", marks=pytest.mark.virtual_gpu)])
def test_an_estimate_takes_its_engine_and_its_allocators_settings(engine):
    kind = {"gpu": "1 GiB", "engine": engine, "max_batch_size": 64}

    usual, expandable = (find(**kind, alloc_conf=conf) for conf in ("", "expandable_segments:True"))

    assert all(f"the {engine} engine predicted" in found.notes[0] for found in (usual, expandable))
    needed = vramkit.estimate(
        mlp(), batch(), optimizer=torch.optim.Adam, loss=loss, batch_size=64, gpu="1 GiB", engine=engine,
        alloc_conf="expandable_segments:True",
    )  # fmt: skip
    assert expandable.batch_size == usual.batch_size == 64
    assert expandable.peak_reserved == needed.peak_reserved != usual.peak_reserved


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("given_", [{"engine": "virtual"}, {"alloc_conf": "", "engine": "fake"}])
def test_where_the_steps_run_on_the_device_nothing_says_how_to_predict(given_):
    text = " and ".join(f"{name}={value!r}" for name, value in sorted(given_.items(), reverse=True))

    with pytest.raises(
        vramkit.UsageError, match=rf"with {text}\. The steps run on the CUDA device .*largest_batch_size"
    ):
        find(mlp().to("cuda"), **given_)


@pytest.mark.virtual_gpu
def test_another_card_is_answered_by_an_estimate():
    model = mlp()

    found = find(model, gpu="rtx4060ti", max_batch_size=None)

    assert {trial.kind for trial in found.trials} == {"predicted"}
    assert not found.verified
    assert 0.9 * found.capacity < max(trial.peak_reserved for trial in found.trials if trial.fits) <= found.capacity
    assert "4060" in found.device_name
    assert "predicted every size" in found.notes[0]


@pytest.mark.virtual_gpu
def test_without_verification_the_answers_are_predicted_and_a_note_says_so(small):
    predicted = find(mlp().to("cuda"), verify=False, max_batch_size=None)
    verified = find(mlp().to("cuda"), max_batch_size=None)

    # A sum over the batch takes a buffer that grows with small batches and not with large ones: predicted is less.
    assert 0.7 * verified.max_batch_size < predicted.max_batch_size <= verified.max_batch_size
    assert not predicted.verified
    assert any("verify=False" in note for note in predicted.notes)


# -- what can't be answered --------------------------------------------------------------------------------------------


@pytest.mark.virtual_gpu
def test_a_step_that_ignores_the_batch_is_said_to():
    model = mlp().to("cuda")
    own = torch.zeros(8, 4096, device="cuda")

    found = find(model, step=lambda given: model(own).sum().backward(), max_batch_size=512)

    assert found.batch_size == 512
    assert any("does not grow" in note for note in found.notes)


@pytest.mark.virtual_gpu
def test_a_step_that_keeps_its_graphs_is_an_error_that_says_what_grew(small):
    model = mlp().to("cuda")
    losses = []

    def step(given: tuple[torch.Tensor, torch.Tensor]) -> None:
        losses.append(model(given[0].to("cuda")).sum())

    with pytest.raises(vramkit.UsageError, match=r"grows by .* with every step.*activations.*losses\.append") as raised:
        find(model, step=step, data=batch(64), min_batch_size=64)

    assert losses == []
    assert "Sequential" in str(raised.value)


@pytest.mark.virtual_gpu
def test_a_step_that_keeps_a_number_is_only_noted():
    model = mlp().to("cuda")
    losses = []

    def step(given: tuple[torch.Tensor, torch.Tensor]) -> None:
        value = model(given[0].to("cuda")).sum()
        value.backward()
        losses.append(value.detach())

    found = find(model, step=step, max_batch_size=64)

    assert any("512 B" in note for note in found.notes)
    assert losses == []


@pytest.mark.virtual_gpu
def test_a_smallest_size_that_does_not_fit_is_told_with_what_held_the_memory(sized):
    sized("700 MiB")

    with pytest.raises(vramkit.DoesNotFit) as raised:
        find(mlp(8192).to("cuda"))

    text = str(raised.value)
    assert "Batch size 2 runs out of memory" in text  # one row is refused by batch norm
    assert "parameters" in text
    assert "gradients" in text


@pytest.mark.virtual_gpu
def test_a_fraction_that_is_too_small_is_told_with_what_would_fit(small):
    with pytest.raises(vramkit.DoesNotFit, match=r"larger memory_fraction: all of the memory has room for \d+"):
        find(mlp().to("cuda"), memory_fraction=0.01, max_batch_size=None)


@pytest.mark.virtual_gpu
def test_what_the_step_raises_comes_through_and_everything_is_put_back():
    model = mlp().to("cuda")
    before = torch.cuda.memory_allocated()

    def step(given: tuple[torch.Tensor, torch.Tensor]) -> None:
        model(given[0].to("cuda")).sum().backward()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as raised:
        find(model, step=step)

    assert "batch size 2" in " ".join(getattr(raised.value, "__notes__", ["batch size 2"]))
    del raised
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.cuda.memory_allocated() == before


@pytest.mark.virtual_gpu
def test_an_interrupt_leaves_no_trace():
    model = mlp().to("cuda")
    before = torch.cuda.memory_allocated(), json.dumps(torch.get_rng_state().tolist())

    def step(given: tuple[torch.Tensor, torch.Tensor]) -> None:
        torch.rand(3)
        model.eval()
        model(given[0].to("cuda")).sum().backward()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find(model, step=step)

    assert (torch.cuda.memory_allocated(), json.dumps(torch.get_rng_state().tolist())) == before
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.virtual_gpu
def test_a_lazy_module_is_refused_and_stays_as_it_was():
    model = nn.Sequential(nn.LazyLinear(16), nn.LazyBatchNorm1d())

    with pytest.raises(vramkit.UsageError, match=r"no shape yet.*Call the model once, on a batch like yours"):
        find(model)

    assert all(torch.nn.parameter.is_lazy(each) and not each.is_cuda for each in model.parameters())


def test_a_batch_that_cannot_grow_is_refused():
    with pytest.raises(vramkit.UsageError, match="No tensor with a dimension 0 was found in the batch"):
        find(data=torch.tensor(1.0))


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"memory_fraction": 0}, "memory_fraction=0"),
        ({"memory_fraction": -0.5}, "memory_fraction=-0.5"),
        ({"memory_fraction": 1.5}, "above 0, at most 1"),
        ({"multiple_of": 0}, "multiple_of=0. It has to be at least 1"),
        ({"multiple_of": -8}, "multiple_of=-8"),
        ({"min_batch_size": 0}, "min_batch_size=0"),
        ({"max_batch_size": 0}, "max_batch_size=0"),
        ({"max_batch_size": 7.5}, "max_batch_size has to be a whole number"),
        ({"multiple_of": True}, "multiple_of has to be a whole number"),
        ({"max_batch_size": 7, "multiple_of": 8}, "No size keeps to all of them"),
        ({"effective_batch_size": 0}, "effective_batch_size=0"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(asked, text):
    with pytest.raises(vramkit.UsageError, match=r"^vramkit.auto_batch_size was called") as raised:
        find(**asked)

    assert text in str(raised.value)
