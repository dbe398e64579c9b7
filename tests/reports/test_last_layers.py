"""What a report says of output layers, whole and in chunks, and of a batch of one row, beside what was measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import vramkit
from vramkit.reports.advice import advise
from vramkit.reports.moment import moment_of
from vramkit.reports.rules.advised import Advice

WORDS, WIDTH, LENGTH = 4096, 64, 512


class Norm(nn.Module):
    """As transformers writes RMSNorm: several tensors as large as what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Language(nn.Module):
    """Returns its loss first, as models of transformers do."""

    def __init__(self, *, tied: bool, chunks: int = 1) -> None:
        super().__init__()
        self.words, self.norm, self.head = nn.Embedding(WORDS, WIDTH), Norm(), nn.Linear(WIDTH, WORDS, bias=False)
        self.chunks = chunks
        if tied:
            self.head.weight = self.words.weight

    def forward(self, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.norm(self.words(words))
        if self.chunks == 1:
            logits = self.head(x)
            return F.cross_entropy(logits.flatten(0, 1), words.flatten()), logits
        parts = zip(x.chunk(self.chunks, 1), words.chunk(self.chunks, 1), strict=True)
        losses = [checkpoint(self._loss, *part, use_reentrant=False) for part in parts]
        return torch.stack(losses).sum() / words.numel(), x

    def _loss(self, x: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.head(x).flatten(0, 1), words.flatten(), reduction="sum")


def measured(model: Language, device: str, *, rows: int = 1) -> vramkit.MemoryResult:
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters())
    with vramkit.profile(model, optimizer) as prof:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.zeros(rows, LENGTH, dtype=torch.long).to(device))[0].backward()
            optimizer.step()
    return prof.result


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(WORDS, WIDTH), Norm()

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.norm(self.words(words))
        return found


def in_chunks_by_the_program() -> vramkit.MemoryResult:
    """Its output layer is a model of its own."""
    body, head = Body(), nn.Linear(WIDTH, WORDS, bias=False)
    words = torch.zeros(LENGTH, dtype=torch.long)

    def loss(x: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(head(x), words, reduction="sum")

    with vramkit.profile([body, head]) as prof:
        for _ in range(2):
            parts = zip(body(words).chunk(8), words.chunk(8), strict=True)
            torch.stack([checkpoint(loss, *part, use_reentrant=False) for part in parts]).sum().backward()
    return prof.result


def told(result: vramkit.MemoryResult) -> Callable[[str], list[Advice]]:
    found = advise(result, moment_of(result), limit=99)
    return lambda words: [each for each in found if words in each.text]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.virtual_gpu)])
@pytest.mark.parametrize("tied", [False, True])
def test_the_logits_of_a_layer_that_shares_its_weight_are_worth_what_chunks_of_them_save(
    tied: bool, device: str
) -> None:
    whole = measured(Language(tied=tied), device)
    in_chunks = measured(Language(tied=tied, chunks=8), device)

    (advice,) = told(whole)("chunks")

    assert advice.saves == pytest.approx(whole.peak_allocated - in_chunks.peak_allocated, rel=0.1)
    assert not told(in_chunks)("chunks")


def test_a_loss_that_is_in_chunks_is_not_to_be_put_in_chunks() -> None:
    assert not told(in_chunks_by_the_program())("chunks")


def test_one_row_has_no_half() -> None:
    one, two = (told(measured(Language(tied=True), "cpu", rows=rows))("halve the batch") for rows in (1, 2))

    assert not one
    assert len(two) == 1
