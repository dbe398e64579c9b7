"""What a report says of attention and functions that are written out, beside what was measured without."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from subprocesses import run_on
from torch import nn

import vramkit
from vramkit.reports.advice import advise
from vramkit.reports.moment import moment_of
from vramkit.reports.rules.advised import Advice

pytestmark = pytest.mark.virtual_gpu
WIDTH, HEADS = 96, 6


class Attention(nn.Module):
    """Causal attention, with a dropout that is a module, a function, or none."""

    def __init__(self, *, fused: bool, dropout: str) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.1) if dropout == "module" else nn.Identity()
        self.fused, self.rate = fused, 0.0 if dropout == "none" else 0.1
        self.is_module = dropout == "module"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = (part.view(batch, length, HEADS, -1).transpose(1, 2) for part in self.qkv(x).split(WIDTH, 2))
        if self.fused:
            found = F.scaled_dot_product_attention(q, k, v, dropout_p=self.rate, is_causal=True)
        else:
            hidden = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            scores = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).masked_fill(hidden, float("-inf"))
            weights = self.dropout(scores.softmax(-1)) if self.is_module else F.dropout(scores.softmax(-1), self.rate)
            found = weights @ v
        result: torch.Tensor = self.out(found.transpose(1, 2).reshape(batch, length, WIDTH))
        return result


class Head(nn.Module):
    """One head, as lessons write it."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(WIDTH, WIDTH // HEADS, bias=False) for _ in range(3))
        self.dropout, self.fused = nn.Dropout(0.1), fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.fused:  # its kernels want a dimension for heads; without it torch 2.11 does what is written out below
            return F.scaled_dot_product_attention(*(each.unsqueeze(1) for each in (q, k, v)), dropout_p=0.1).squeeze(1)
        result: torch.Tensor = self.dropout((q @ k.transpose(-2, -1)).softmax(-1)) @ v
        return result


class Heads(nn.Module):
    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(fused=fused) for _ in range(HEADS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([head(x) for head in self.heads], -1)


class GELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


class MLP(nn.Module):
    def __init__(self, hidden: int, act: nn.Module | None = None, *, nested: bool = False) -> None:
        super().__init__()
        self.up, self.act = nn.Linear(WIDTH, hidden), act or nn.ReLU()
        self.down, self.dropout = nn.Linear(hidden, WIDTH), nn.Dropout(0.1)
        if nested:
            self.up, self.act = nn.Sequential(self.up, self.act), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(self.dropout(self.act(self.up(x))))
        return result


def measured(make: Callable[[], nn.Module], length: int = 320, *, autocast: bool = False) -> vramkit.MemoryResult:
    model = nn.Sequential(*[make() for _ in range(3)]).to("cuda")
    with vramkit.profile(model) as prof:
        for _ in range(2):
            with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
                loss = model(torch.zeros(8, length, WIDTH, device="cuda")).float().sum()
            loss.backward()
            model.zero_grad()
    return prof.result


def told(result: vramkit.MemoryResult, words: str) -> list[Advice]:
    return [each for each in advise(result, moment_of(result), limit=99) if words in each.text]


_IN_BFLOAT16 = """
import sys, torch, vramkit
sys.path.append(FOLDER)
from test_written_out import Attention, told
model = torch.nn.Sequential(*[Attention(fused=True, dropout="none") for _ in range(3)]).to("cuda", torch.bfloat16)
with vramkit.profile(model) as prof:
    for _ in range(2):
        model(torch.zeros(8, 320, 96, device="cuda", dtype=torch.bfloat16)).float().sum().backward()
result = [[each.is_computed, each.text] for each in told(prof.result, "scaled_dot_product_attention")]
"""


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dropout", ["module", "function", "none"])
def test_attention_that_is_written_out_is_worth_what_the_fused_one_saves(dropout: str, autocast: bool) -> None:
    by_hand, fused = (
        measured(lambda is_fused=is_fused: Attention(fused=is_fused, dropout=dropout), autocast=autocast)  # type: ignore[misc]
        for is_fused in (False, True)
    )

    (advice,) = told(by_hand, "scaled_dot_product_attention")

    assert advice.saves == pytest.approx(by_hand.peak_allocated - fused.peak_allocated, rel=0.1)
    assert not told(fused, "scaled_dot_product_attention")


def test_on_a_card_without_kernels_for_bfloat16_no_figure_is_given() -> None:
    """Where the fused function writes out what others do by hand."""
    folder = repr(str(Path(__file__).parent))
    told = run_on("t4", _IN_BFLOAT16.replace("FOLDER", folder))

    [(is_computed, text)] = told
    assert not is_computed
    assert text.endswith("but for bfloat16, which has no such kernel on this card")


def test_heads_that_are_modules_of_their_own_are_found() -> None:
    by_hand, fused = (measured(lambda is_fused=is_fused: Heads(fused=is_fused)) for is_fused in (False, True))  # type: ignore[misc]

    (advice,) = told(by_hand, "scaled_dot_product_attention")

    assert "(batch, heads, rows, width)" in advice.text
    assert advice.saves == pytest.approx(by_hand.peak_allocated - fused.peak_allocated, rel=0.1)
    assert not told(fused, "scaled_dot_product_attention")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("length", [WIDTH, 4 * WIDTH, 64])
def test_a_hidden_layer_is_no_attention_however_long_the_sequence_is(length: int, nested: bool) -> None:
    assert not told(measured(lambda: MLP(4 * WIDTH, nested=nested), length), "scaled_dot_product_attention")


def test_a_function_that_is_written_out_is_worth_what_the_fused_one_saves() -> None:
    by_hand = measured(lambda: MLP(4 * WIDTH, GELU()))
    fused = measured(lambda: MLP(4 * WIDTH, nn.GELU(approximate="tanh")))

    (advice,) = told(by_hand, "fused function")

    assert advice.saves == pytest.approx(by_hand.peak_allocated - fused.peak_allocated, rel=0.1)
    assert not told(fused, "fused function")
    assert not told(measured(lambda: Attention(fused=False, dropout="module")), "fused function")
