"""How much a profile looks at: not the whole model for each of its parts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import vramkit
from vramkit.profiling.holders import Model
from vramkit.profiling.lines import Lines


class Blocks(nn.Module):
    """Blocks of two layers, each recomputed in the backward."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x


def test_a_model_is_looked_at_as_often_however_many_of_its_modules_are_recomputed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[Model] = []
    refresh = Model.refresh
    monkeypatch.setattr(Model, "refresh", lambda model: (looked.append(model), refresh(model))[1])

    def looks(count: int) -> int:
        model, before = Blocks(count), len(looked)
        with vramkit.profile(device="cpu"):
            model(torch.ones(2, 8)).sum().backward()
        return len(looked) - before

    assert looks(2) == looks(5) > 0


def test_an_object_that_parameters_share_is_looked_into_once() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    shared, own = SimpleNamespace(scale=torch.ones(8)), torch.ones(8)
    model[0].weight.quantised = model[1].weight.quantised = shared
    model[1].weight.own = own

    known = Model(0, "Net", model, added_by=Lines("").current())

    assert known.carried_names == ["Net.0.weight.quantised.scale", "Net.1.weight.own"]
    assert [ref() for ref in known.carried] == [shared.scale, own]


def test_what_an_engine_has_is_no_parameters_that_knows_the_engine() -> None:
    model = nn.Linear(8, 8)
    buffers = {"bucket": torch.ones(64)}
    model.weight.engine = SimpleNamespace(module=model, buffers=buffers)  # type: ignore[attr-defined] # as of DeepSpeed
    model.bias.engine = SimpleNamespace(optimizer=torch.optim.SGD(model.parameters()), buffers=buffers)  # type: ignore[attr-defined]

    known = Model(0, "Net", model, added_by=Lines("").current())

    assert not known.carried
