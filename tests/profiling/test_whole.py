"""Memory that runs out before the first step: what was there is labelled, and what is needed in full is said."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
import torch
from torch import nn

import vramkit
from vramkit.profiling.whole import whole_of
from vramkit.results.profile import Profile
from vramkit.sizes import format_size
from vramkit.tape.events import Category

pytestmark = pytest.mark.virtual_gpu

WIDTH, LAYERS = 1024, 12
LAYER = (WIDTH * WIDTH + WIDTH) * 4
MIB = 1 << 20


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(*[nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])


@contextmanager
def room(gpu: vramkit.virtual_gpu.VirtualGPU, size: int) -> Iterator[None]:
    """Leaves so many bytes of the device."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.zeros(1, device="cuda")
    free, total = torch.cuda.mem_get_info()
    gpu.set_memory(total - free + size)
    try:
        yield
    finally:
        gpu.set_memory(None)


def measured(run: Callable[[], object]) -> Profile:
    prof = vramkit.profile(device="cuda")
    with suppress(torch.OutOfMemoryError), prof:
        run()
    return prof.result


def made_of(profile: Profile) -> set[Category]:
    """The categories of all that was allocated inside the block."""
    table = profile.tape.allocations
    return set(map(Category, table["category"][table["born"] >= 0].tolist()))


def told(profile: Profile) -> str:
    return " ".join(note for note in profile.notes if "Training " in note)


def test_a_model_that_does_not_fit_is_labelled_and_its_whole_size_is_said(gpu: vramkit.virtual_gpu.VirtualGPU) -> None:
    model = Net()

    with room(gpu, 30 * MIB):
        profile = measured(lambda: model.to("cuda"))

    moved = sum(parameter.nbytes for parameter in model.parameters() if parameter.is_cuda)
    assert 0 < moved < LAYERS * LAYER
    assert profile.final.parameters == moved
    assert made_of(profile) == {Category.PARAMETER}
    whole = format_size(LAYERS * LAYER)
    assert f"{format_size(moved)} of the {whole} of Net are on the device." in told(profile)
    assert f"{whole} of parameters and buffers + {whole} of gradients = {format_size(2 * LAYERS * LAYER)}" in told(
        profile
    )
    assert f"({format_size(4 * LAYERS * LAYER)} with Adam's state)" in told(profile)
    assert format_size(profile.capacity) in told(profile)


def test_an_optimizers_first_step_that_does_not_fit_says_how_much_of_its_state_there_is(
    gpu: vramkit.virtual_gpu.VirtualGPU,
) -> None:
    model = Net().cuda()
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        model(torch.zeros(8, WIDTH, device="cuda")).sum().backward()
        optimizer.step()

    with room(gpu, 120 * MIB):
        profile = measured(step)

    made = sum(each.nbytes for state in optimizer.state.values() for each in state.values() if each.is_cuda)
    assert 0 < made < 2 * LAYERS * LAYER
    assert profile.final.optimizer_state == made
    assert f"{format_size(made)} of the {format_size(2 * LAYERS * LAYER)} of AdamW's state were made." in told(profile)
    assert f"= {format_size(4 * LAYERS * LAYER)}, before any activation" in told(profile)


def test_a_script_that_ends_before_anything_runs_has_its_labels_and_is_told() -> None:
    held: list[nn.Module] = []

    profile = measured(lambda: held.append(Net().cuda()))

    assert profile.final.parameters == LAYERS * LAYER
    assert made_of(profile) == {Category.PARAMETER}
    assert "on the device" not in told(profile)
    assert told(profile).startswith(f"Training Net takes {format_size(LAYERS * LAYER)} of parameters and buffers")


@pytest.mark.parametrize("frozen", [True, False])
def test_nothing_is_said_of_what_does_not_train_or_has_trained(frozen: bool) -> None:
    model = Net().cuda().requires_grad_(not frozen)
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters() if frozen else model.parameters())

    def run() -> None:
        if not frozen:
            model(torch.zeros(8, WIDTH, device="cuda")).sum().backward()
            optimizer.step()
        raise torch.OutOfMemoryError

    assert told(measured(run)) == ""


def test_several_models_are_one_sum_and_a_closed_form_that_is_lacking_ends_nothing() -> None:
    models = [Net().cuda(), nn.Linear(8, 8).cuda()]

    whole = whole_of(models, [], [], failed=True)
    assert whole is not None
    assert (whole.name, whole.held, whole.states) == ("Net and 1 more", LAYERS * LAYER + 288, 2 * LAYERS * LAYER + 576)
    assert whole_of(models, [torch.optim.LBFGS(models[0].parameters())], [], failed=True) is None
