"""What a report says of kernels that ``cudnn.benchmark`` tries, on the virtual GPU."""

from __future__ import annotations

import pytest
import torch

import vramkit
from vramkit.reports.advice import advise
from vramkit.reports.moment import moment_of

pytestmark = pytest.mark.virtual_gpu


def test_what_was_only_tried_is_what_a_later_step_does_without_and_no_half_of_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    layers = torch.nn.Conv2d(128, 128, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(128 * 144, 4)
    model = torch.nn.Sequential(*layers).to("cuda")

    def step(targets: int) -> None:
        out = model(torch.zeros(5, 128, 12, 12).to("cuda"))
        (out.sum() + (out.sum() * torch.ones(targets, device="cuda")).square().sum()).backward()
        model.zero_grad()

    with vramkit.profile(model) as first:
        step(300)
        step(400)  # a loss of another size, as a detector's, tells nothing of the layers
    with vramkit.profile(model) as later:
        step(400)

    found = {each.text.split(",")[0]: each for each in advise(first.result, moment_of(first.result), limit=99)}
    assert found["leave torch.backends.cudnn.benchmark off"].saves == (
        first.result.peak_allocated - later.result.peak_allocated
    )
    assert not any(each.is_computed for text, each in found.items() if text.startswith("halve the batch"))
