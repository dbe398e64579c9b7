"""What a profile that ends with an optimizer's first step says of the next one, held against a profile of two."""

from __future__ import annotations

import gc
from functools import partial

import pytest
import torch
from torch import nn

import vramkit
from vramkit.results.profile import Profile
from vramkit.sizes import format_size

devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.virtual_gpu)])
adam, plain = torch.optim.Adam, partial(torch.optim.SGD, lr=0.1)


def profiled(device: str, batch: int, steps: int, optimizer_of=adam, *, begins: bool = True) -> Profile:
    """A training that empties the gradients where a step begins, or where it ends."""
    gc.collect()
    if device == "cuda":
        torch._C._cuda_clearCublasWorkspaces()
    model = nn.Sequential(nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 512)).to(device)
    optimizer = optimizer_of(model.parameters())
    with vramkit.profile(model, device=device) as profile:
        for _ in range(steps):
            inputs = torch.ones(batch, 512, device=device)
            if begins:
                optimizer.zero_grad()
            model(inputs).mean().backward()
            del inputs
            optimizer.step()
            if not begins:
                optimizer.zero_grad()
    return profile.result


def said(profile: Profile) -> list[str]:
    return [note for note in profile.notes if "measure more steps" in note]


@devices
@pytest.mark.parametrize("begins", [True, False])
def test_the_peak_of_a_second_step_is_said_after_the_first(device: str, begins: bool) -> None:
    once, twice = (profiled(device, 8192, steps, begins=begins) for steps in (1, 2))

    assert twice.peak_allocated > once.peak_allocated
    assert [f"about {format_size(twice.peak_allocated)}:" in note for note in said(once)] == [True]
    assert said(twice) == []


@devices
def test_nothing_is_said_of_an_optimizer_without_state(device: str) -> None:
    assert said(profiled(device, 8192, 1, plain)) == []
    assert len(said(profiled(device, 8192, 1, partial(plain, momentum=0.9)))) == 1


@devices
def test_nothing_is_said_where_the_optimizer_step_itself_needs_most(device: str) -> None:
    assert said(profiled(device, 8, 1)) == []
