"""What a report says of attention that returns its weights, beside what was measured."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vramkit
from vramkit.reports.advice import advise
from vramkit.reports.moment import moment_of
from vramkit.reports.rules.advised import Advice

pytestmark = pytest.mark.virtual_gpu


class Attention(nn.Module):
    def __init__(self, width: int, *, need_weights: bool) -> None:
        super().__init__()
        self.before, self.inside = nn.Linear(width, width), nn.MultiheadAttention(width, 4, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.before(x)
        found: torch.Tensor = self.inside(hidden, hidden, hidden, need_weights=self.need_weights)[0]
        return found


def measured(length: int, width: int = 64, *, need_weights: bool) -> vramkit.MemoryResult:
    model = Attention(width, need_weights=need_weights).to("cuda")
    with vramkit.profile(model) as prof:
        for _ in range(2):
            for _ in range(3):  # graphs that are alive together
                out = model(torch.zeros(4, length, width, device="cuda"))
            out.sum().backward()
    return prof.result


def about_weights(result: vramkit.MemoryResult) -> list[Advice]:
    return [each for each in advise(result, moment_of(result), limit=99) if "need_weights" in each.text]


def test_weights_that_nobody_uses_are_worth_what_a_program_without_them_saves() -> None:
    with_weights, without = (measured(512, need_weights=needed) for needed in (True, False))

    (advice,) = about_weights(with_weights)

    assert advice.saves == pytest.approx(with_weights.peak_allocated - without.peak_allocated, rel=0.1)


@pytest.mark.parametrize(("length", "width"), [(256, 256), (64, 64), (128, 64), (192, 64), (256, 64)])
def test_a_program_without_weights_has_none_to_save(length: int, width: int) -> None:
    assert not about_weights(measured(length, width, need_weights=False))
