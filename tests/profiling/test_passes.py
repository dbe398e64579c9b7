"""The passes of a program, measured: each forward, backward and optimizer step, and who made what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import vramkit
from vramkit.allocator import CachingAllocator
from vramkit.results.profile import Profile
from vramkit.tape.events import Category, Phase, Tape

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.virtual_gpu)]
OF_A_STEP = [Phase.FORWARD, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER]


def measured(device: str) -> Profile:
    """Steps of two forwards, one of them checkpointed and one that no backward uses; then an evaluation."""
    model = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 64)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    kept = []
    with vramkit.profile(model, optimizer) as prof:
        for _ in range(3):
            optimizer.zero_grad()
            kept.append(model(torch.zeros(512, 64, device=device)))
            checkpoint(model, torch.zeros(512, 64, device=device), use_reentrant=False).sum().backward()
            optimizer.step()
        with torch.no_grad():
            model.eval()(torch.zeros(512, 64, device=device))
    return prof.result


def made_in(tape: Tape, phase: Phase) -> set[int]:
    """Numbers of the forwards that are said to have made what was made in a phase by a module."""
    table = tape.allocations
    return set(table["forward"][(table["phase"] == phase) & (table["module"] >= 0)].tolist())


@pytest.mark.parametrize("device", DEVICES)
def test_passes_are_in_order_and_everything_knows_its_forward(device: str) -> None:
    tape = measured(device).tape

    assert tape.passes["phase"].tolist() == [*OF_A_STEP * 3, Phase.EVALUATION], "a recomputation is no pass of its own"
    assert tape.passes["step"].tolist() == [0] * 4 + [1] * 4 + [2] * 5
    assert tape.forwards["made_graph"].tolist() == [True] * 6 + [False]
    assert tape.forwards["has_grad"].tolist() == [True] * 6 + [False]
    assert made_in(tape, Phase.FORWARD) == {1, 2, 3, 4, 5, 6}
    assert made_in(tape, Phase.RECOMPUTE) == {2, 4, 6}
    assert made_in(tape, Phase.EVALUATION) == {7}
    outputs = tape.allocations[np.isin(tape.allocations["category"], (Category.ACTIVATION, Category.OUTPUT))]
    unused = outputs[(outputs["requested"] == 512 * 256 * 4) & (outputs["phase"] == Phase.FORWARD)]
    assert {1, 3, 5} <= set(unused["forward"].tolist())


@pytest.mark.parametrize("device", DEVICES)
def test_a_tape_tells_which_optimizer_stepped_and_which_forwards_were_given_no_graph(
    device: str, tmp_path: Path
) -> None:
    first, second = (nn.Linear(64, 64).to(device) for _ in range(2))
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1, foreach=False) for each in (first, second)]
    with vramkit.profile({"First": first, "Second": second}, optimizers) as prof:
        second(first(torch.zeros(8, 64, device=device))).sum().backward()
        for each in reversed(optimizers):
            each.step()
        with torch.no_grad():
            first(torch.zeros(8, 64, device=device))
    prof.result.save(tmp_path / "profile.npz")

    for tape in (prof.result.tape, vramkit.load(tmp_path / "profile.npz").tape):
        steps = tape.passes["optimizer"][tape.passes["phase"] == Phase.OPTIMIZER]
        trained = [tape.optimizers[number - 1] for number in steps.tolist()]
        assert trained == [{f"{name}.weight", f"{name}.bias"} for name in ("Second", "First")]
        assert tape.forwards["is_source"].tolist() == [True, False, False], "the last makes no graph at all"


@pytest.mark.virtual_gpu
def test_a_replayed_tape_has_the_same_passes_over_its_own_events() -> None:
    tape = measured("cuda").tape

    replayed = CachingAllocator(conf="expandable_segments:True").replay(tape).tape

    assert (replayed.passes[["phase", "step"]] == tape.passes[["phase", "step"]]).all()
    for before, after in zip(tape.passes, replayed.passes, strict=True):
        counts = [
            np.isin(each["allocation"], np.arange(len(one.allocations))).sum()
            for one, row in ((tape, before), (replayed, after))
            for each in (one.events[row["begin"] : row["end"]],)
        ]
        assert counts[0] == counts[1]
