"""`vramkit.profile` on the CPU, and its answers to wrong use; no device needed."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from leftovers import left_behind
from torch import nn
from torch.utils.checkpoint import checkpoint

import vramkit
from vramkit.tape.events import Category, Phase


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3, count: int = 32) -> list[float]:
    losses = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(count, 16, generator=generator), torch.randint(0, 4, (count,), generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def small(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4))
    return model, torch.optim.Adam(model.parameters())


def nbytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def test_profiling_leaves_every_loss_and_weight_bit_identical() -> None:
    plain, plain_optimizer = small()
    profiled, profiled_optimizer = small()

    torch.manual_seed(1)
    expected = train(plain, plain_optimizer)
    torch.manual_seed(1)
    with vramkit.profile(profiled, profiled_optimizer):
        found = train(profiled, profiled_optimizer)

    assert found == expected
    for before, after in zip(plain.parameters(), profiled.parameters(), strict=True):
        assert torch.equal(before, after)


def test_figures_on_the_cpu_are_those_of_the_objects() -> None:
    model, optimizer = small()
    with vramkit.profile(model, optimizer) as prof:
        train(model, optimizer)

    profile = prof.result
    parameters = list(model.parameters())
    assert profile.device == "cpu"
    assert profile.final.parameters == nbytes(parameters)
    assert profile.final.gradients == nbytes([p.grad for p in parameters])
    assert profile.final.optimizer_state == nbytes([v for s in optimizer.state.values() for v in s.values()])
    # A loop that binds its names anew has two batches alive while it makes the next.
    assert int(profile.timeline.of(Category.INPUT).max()) == 2 * (32 * 16 * 4 + 32 * 8)
    assert profile.final.requested == profile.final.parameters + profile.final.gradients + profile.final.optimizer_state
    assert {(each.step, each.phase) for each in profile.phases} == {
        (step, phase) for step in range(3) for phase in (Phase.OUTSIDE, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER)
    }


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 16), st.booleans())
def test_activations_of_a_stack_are_what_its_relus_and_its_output_hold(
    widths: list[int], count: int, bias: bool
) -> None:
    layers = []
    for width, following in zip([16, *widths], widths, strict=False):
        layers += [nn.Linear(width, following, bias=bias), nn.ReLU()]
    model = nn.Sequential(*layers)
    with vramkit.profile(model) as prof:
        model(torch.zeros(count, 16)).sum().backward()

    profile = prof.result
    # A linear layer's output dies when the ReLU has read it; the ReLU keeps its own output for the backward.
    assert profile.by_module[0].activations == sum(count * width * 4 for width in widths)
    assert profile.peak.parameters == nbytes(list(model.parameters()))
    assert profile.final.gradients == nbytes(list(model.parameters()))


def test_the_batch_makes_activations_grow_and_parameters_not() -> None:
    model, optimizer = small()
    found = []
    for count in (8, 16, 32):
        with vramkit.profile(model, optimizer) as prof:
            train(model, optimizer, count=count)
        found.append(prof.result)

    activations = [int(profile.timeline.of(Category.ACTIVATION).max()) for profile in found]
    assert activations == sorted(set(activations))
    assert len({profile.peak.parameters for profile in found}) == 1


def test_checkpointed_forwards_are_recomputation_on_the_cpu_too() -> None:
    inner = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.inner, x, use_reentrant=False)

    model = Model()
    with vramkit.profile(model) as prof:
        model(torch.zeros(4, 16, requires_grad=True)).sum().backward()

    table, modules = prof.result.tape.allocations, prof.result.tape.modules
    again = [
        (int(row["requested"]), Category(int(row["category"])), modules[row["module"]].name)
        for row in table[table["phase"] == Phase.RECOMPUTE]
    ]
    assert again == [
        (4 * 64 * 4, Category.TEMPORARY, "Model.inner.0"),
        (4 * 64 * 4, Category.ACTIVATION, "Model.inner.1"),
    ]  # the last layer's output is not needed again


def test_shared_parameters_count_once() -> None:
    first, second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    with vramkit.profile(model) as prof:
        model(torch.zeros(2, 8))

    assert prof.result.peak.parameters == prof.result.by_module[0].parameters == 8 * 8 * 4


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.virtual_gpu)])
def test_gradients_of_tensors_that_are_no_parameters_are_gradients(device: str) -> None:
    embed, head = nn.Embedding(10, 256, device=device).requires_grad_(False), nn.Linear(256, 256, device=device)
    hook = embed.register_forward_hook(lambda module, args, output: output.requires_grad_(True))  # as PEFT does it
    kept = []

    with vramkit.profile(device=device) as prof:
        x = torch.zeros(64, 256, device=device, requires_grad=True)
        embedded = embed(torch.zeros(64, dtype=torch.long, device=device))
        (head(embedded) + head(x)).sum().backward()
        head.weight.grad = head.bias.grad = None
        kept += [x.grad, embedded.grad]

    assert prof.result.final.gradients == nbytes(kept) == 2 * 64 * 256 * 4
    hook.remove()


def test_dropped_events_on_the_cpu_are_said_and_the_rest_stays_exact() -> None:
    model, optimizer = small()
    with vramkit.profile(model, optimizer, max_events=100) as prof:
        train(model, optimizer, steps=40)

    profile = prof.result
    assert len(profile.tape.events) == 100
    assert "not kept" in profile.notes[0]
    assert profile.final.parameters == nbytes(list(model.parameters()))
    assert profile.final.gradients == nbytes([p.grad for p in model.parameters()])
    assert (profile.timeline.by_category >= 0).all()


def test_an_exception_passes_and_leaves_a_result_and_no_hooks() -> None:
    model, _ = small()
    prof = vramkit.profile(model)

    def fails() -> None:
        with prof:
            model(torch.zeros(2, 16))
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fails()

    assert left_behind() == []
    assert prof.result.peak.parameters == nbytes(list(model.parameters()))


def test_an_exception_inside_a_module_leaves_the_module_stack_right() -> None:
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("inside")

    model = nn.Sequential(nn.Linear(4, 4), Fails())
    with vramkit.profile(model) as prof:
        with pytest.raises(RuntimeError, match="inside"):
            model(torch.zeros(2, 4))
        after = torch.zeros(1000)

    table = prof.result.tape.allocations
    (row,) = table[table["requested"] == after.nbytes]
    assert (row["module"], row["phase"]) == (-1, Phase.OUTSIDE)


def test_hooks_left_behind_would_be_found() -> None:
    prof = vramkit.profile(device="cpu")
    prof.__enter__()
    found = left_behind()
    prof.__exit__(None, None, None)

    assert {"a profile is active", "Module.__call__ is replaced", "a dispatch mode is active"} <= set(found)


def test_a_result_holds_nothing_of_the_program_alive() -> None:
    model, optimizer = small()
    with vramkit.profile(model, optimizer) as prof:
        train(model, optimizer)
    watch = torch.multiprocessing.reductions.StorageWeakRef(next(model.parameters()).untyped_storage())
    del model, optimizer
    gc.collect()

    assert watch.expired()
    assert prof.result.peak.parameters > 0


def test_a_run_that_was_saved_reads_the_same(tmp_path: Path) -> None:
    model, optimizer = small()
    with vramkit.profile(model, optimizer) as prof:
        train(model, optimizer)

    prof.result.save(tmp_path / "run.npz")

    assert vramkit.load(tmp_path / "run.npz").report() == prof.result.report()


# -- wrong use ---------------------------------------------------------------------------------------------------------


def test_entering_twice_says_to_make_a_new_one() -> None:
    prof = vramkit.profile(device="cpu")
    with prof:
        pass

    with pytest.raises(vramkit.UsageError, match=r"entered for the second time.*Make a new one"), prof:
        pass


def test_a_profile_inside_a_profile_says_to_leave_the_outer_one() -> None:
    with vramkit.profile(device="cpu"):
        inner = vramkit.profile(device="cpu")
        with pytest.raises(vramkit.UsageError, match=r"Another one is still.*Leave the outer block"), inner:
            pass


def test_a_model_on_no_device_says_which_to_pass() -> None:
    with pytest.raises(vramkit.UsageError, match=r"on the meta device.*device=\"cuda\""):
        vramkit.profile(nn.Linear(2, 2, device="meta"))
    with pytest.raises(vramkit.UsageError, match=r"no parameters and no buffers.*device=\"cuda\""):
        vramkit.profile(nn.ReLU())


def test_a_result_read_too_early_says_when_it_is_there() -> None:
    prof = vramkit.profile(device="cpu")
    with pytest.raises(vramkit.UsageError, match=r"not entered.*after the with block"):
        _ = prof.result
    with prof, pytest.raises(vramkit.UsageError, match=r"still running.*after the with block"):
        _ = prof.result


def test_a_step_outside_the_block_is_refused() -> None:
    with pytest.raises(vramkit.UsageError, match="inside the block"):
        vramkit.profile(device="cpu").step()


@pytest.mark.parametrize("wrong", ["adam", torch.optim.Adam, 3, [nn.Linear(2, 2)], {"a": None}])
def test_an_optimizer_that_is_none_is_shown_as_what_it_is(wrong: object) -> None:
    with pytest.raises(vramkit.UsageError, match=r"vramkit.profile was called\. The optimizer is ") as caught:
        vramkit.profile(nn.Linear(2, 2), wrong)

    assert "torch.optim.Optimizer" in str(caught.value)


def test_a_class_in_place_of_an_object_says_so() -> None:
    with pytest.raises(vramkit.UsageError, match=r"a class: make an object of it first"):
        vramkit.profile(nn.Linear)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "many", 10**23])
def test_a_recording_without_events_is_refused(wrong: object) -> None:
    with pytest.raises(vramkit.UsageError, match=r"max_events.*from 1 to"):
        vramkit.profile(max_events=wrong)


def test_a_number_of_events_may_be_an_integer_of_numpy() -> None:
    most: Any = np.int64(3)
    with vramkit.profile(device="cpu", max_events=most) as prof:
        kept = [torch.zeros(8) for _ in range(5)]

    assert len(prof.result.tape.events) == most < len(kept)


@pytest.mark.parametrize("wrong", ["mps", "meta", "nonsense"])
def test_a_device_that_cannot_be_measured_is_refused(wrong: str) -> None:
    with pytest.raises(vramkit.UsageError, match=r"device=\"cuda\" or device=\"cpu\""):
        vramkit.profile(device=wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here, real or virtual")
def test_without_a_cuda_device_the_error_names_the_virtual_gpu() -> None:
    with pytest.raises(vramkit.DeviceError, match=r"no CUDA device.*vramkit run --gpu"), vramkit.profile(device="cuda"):
        pass
