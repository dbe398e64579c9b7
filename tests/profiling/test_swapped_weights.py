"""Averages of weights that a model gets in place of its own while it is evaluated."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vramkit
from vramkit.tape.events import Category

WIDTH = 128
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.virtual_gpu)]


class Average:
    """Keeps an average, and puts it into the model by reference."""

    def __init__(self, model: nn.Module) -> None:
        self.shadow = {name: value.detach().clone() for name, value in model.named_parameters()}
        self.backup: dict[str, torch.Tensor] = {}

    def put_in(self, model: nn.Module) -> None:
        for name, value in model.named_parameters():
            self.backup[name], value.data = value.data, self.shadow[name]

    def take_out(self, model: nn.Module) -> None:
        for name, value in model.named_parameters():
            value.data = self.backup.pop(name)


@pytest.mark.parametrize("evaluates_first", [True, False])
@pytest.mark.parametrize("device", DEVICES)
def test_an_average_that_is_swapped_in_stays_a_copy_and_what_trains_a_parameter(
    device: str, evaluates_first: bool
) -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)).to(device)
    optimizer = torch.optim.Adam(model.parameters())
    average = Average(model)
    batch = torch.ones(4, WIDTH, device=device)
    size = sum(each.nbytes for each in model.parameters())
    trained = {each.data_ptr() for each in model.parameters()}
    shadow = {each.data_ptr() for each in average.shadow.values()}

    def evaluate() -> None:
        average.put_in(model)
        model.eval()
        with torch.no_grad():
            model(batch)
        model.train()
        average.take_out(model)

    with vramkit.profile(device=device) as prof:
        if evaluates_first:
            evaluate()
        for _ in range(4):
            optimizer.zero_grad()
            model(batch).pow(2).mean().backward()
            optimizer.step()
            evaluate()

    profile = prof.result
    assert profile.peak.of(Category.PARAMETER) == size == profile.peak.of(Category.MODEL_COPY)
    table, names = profile.tape.allocations, profile.tape.names
    before = table[table["born"] < 0]
    copies, parameters = (before[before["category"] == each] for each in (Category.MODEL_COPY, Category.PARAMETER))
    if device != "cpu":  # there addresses are numbers of the recording's own
        assert set(copies["address"].tolist()) == shadow
        assert set(parameters["address"].tolist()) == trained
    assert all(names[row["name"]].startswith("average.shadow[") for row in copies)


@pytest.mark.parametrize("device", DEVICES)
def test_a_checkpoint_that_a_model_takes_over_and_that_never_trains_is_its_parameters(device: str) -> None:
    checkpoint = {
        f"{i}.{key}": value for i in (0, 1) for key, value in nn.Linear(WIDTH, WIDTH).to(device).state_dict().items()
    }
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)).to("meta")
    model.load_state_dict(checkpoint, assign=True)

    with vramkit.profile(device=device) as prof, torch.no_grad():
        for _ in range(3):
            model(torch.ones(4, WIDTH, device=device))

    peak = prof.result.peak
    assert peak.of(Category.PARAMETER) == sum(each.nbytes for each in checkpoint.values())
    assert peak.of(Category.MODEL_COPY) == 0
