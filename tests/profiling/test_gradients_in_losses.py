"""Losses that are made of gradients: penalties, differential equations, meta-learning."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vramkit
from vramkit.tape.events import Category, Phase

WIDTH, POINTS, STEPS = 16, 4096, 3
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.virtual_gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_computed_with_gradients_up_to_the_backward_is_part_of_the_forward(device: str) -> None:
    """And the points that it is computed at are inputs, although several backwards of a step find them there."""
    model = nn.Sequential(nn.Linear(1, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    with vramkit.profile(model, optimizer, device=device) as prof:
        for _ in range(STEPS):
            x = torch.ones(POINTS, 1, device=device, requires_grad=True)
            u = model(x)
            (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
            residual = (slope * u).repeat(1, 3)  # three times as large as anything else here
            loss = residual.pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            del residual
            loss.item()
            optimizer.step()

    table = prof.result.tape.allocations
    residuals = table[(table["requested"] == 3 * POINTS * 4) & (table["phase"] != Phase.BACKWARD)]
    assert len(residuals) >= 2 * STEPS, "the residuals, and their squares"
    assert set(residuals["phase"]) == {Phase.FORWARD}
    assert Category.OTHER not in set(table["category"][table["born"] >= 0]), "the losses are activations, too"
    assert prof.result.peak.parameters == sum(each.nbytes for each in model.parameters())
    assert prof.result.peak.inputs == x.nbytes


@pytest.mark.parametrize("device", DEVICES)
def test_forces_in_an_evaluation_make_no_loss_of_the_next_batch(device: str) -> None:
    model = nn.Sequential(nn.Linear(1, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    with vramkit.profile(model, optimizer, device=device) as prof:
        for _ in range(STEPS):
            model.train()
            batch = torch.ones(POINTS, 1, device=device)
            unused = torch.ones(5, POINTS, device=device)
            model(batch).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            del batch, unused
            model.eval()
            x = torch.ones(POINTS, 1, device=device, requires_grad=True)
            torch.autograd.grad(model(x).sum(), x, create_graph=True)

    table = prof.result.tape.allocations
    beside = table[table["requested"] == 5 * POINTS * 4]
    assert set(beside["category"]) == {Category.INPUT}
    assert set(beside["phase"]) == {Phase.OUTSIDE}
