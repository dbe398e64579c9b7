"""Every source names the operator that made an allocation, and they agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import vramkit
from vramkit.tape.events import Category
from vramkit.tape.memory import MemoryResult

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")


class Words(nn.Module):
    """An attention layer, a block that is recomputed, and a function of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(16, 32), nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.up, self.down = nn.Linear(32, 128), nn.Linear(128, 16)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embedding(words))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = checkpoint(lambda x: torch.sigmoid(self.up(x)), x, use_reentrant=False)
        return self.down(Doubled.apply(x))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 2


def loss(output: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.flatten(0, 1), words.flatten())


def measured(device: str, *, stacks: bool) -> MemoryResult:
    model = Words().to(device)
    optimizer = torch.optim.Adam(model.parameters(), foreach=False)
    with vramkit.profile(model, optimizer, device=device, stacks=stacks) as prof:
        for _ in range(2):
            words = torch.zeros(2, 8, dtype=torch.long, device=device)
            optimizer.zero_grad()
            loss(model(words), words).backward()
            optimizer.step()
    return prof.result


def operators_of(result: MemoryResult) -> list[tuple[int, str, str]]:
    """Of what the second step made, in order: bytes, the operator, and the node of the backward that it worked for."""
    found = []
    for row in result.to_records():
        if row["step"] == 1 and row["born"] >= 0 and row["category"] not in (Category.WORKSPACE.name, "INPUT"):
            name, _, node = (row["operator"] or "").partition(" ")
            found.append((row["requested"], name, node))
    return found


@pytest.mark.virtual_gpu
def test_cuda_and_fakes_name_the_same_operators() -> None:
    words = torch.zeros(2, 8, dtype=torch.long)
    adam = lambda parameters: torch.optim.Adam(parameters, foreach=False)  # noqa: E731 - an argument

    real = operators_of(measured("cuda", stacks=True))
    predicted = operators_of(vramkit.estimate(Words(), words, optimizer=adam, loss=loss, engine="fake"))

    assert [each[:2] for each in real] == [each[:2] for each in predicted]
    # In C++ only the node's own formula is told: not that of the sums that the engine makes of its results.
    assert all(node in (other, "") for (*_, node), (*_, other) in zip(real, predicted, strict=True))
    assert {"aten::mm", "aten::sigmoid", "aten::native_layer_norm", "aten::mul"} <= {name for _, name, _ in real}
    assert {"(AddmmBackward0)", "(NativeLayerNormBackward0)"} <= {node for *_, node in real}


@pytest.mark.parametrize("stacks", [False, True])
def test_the_cpu_names_operators_with_and_without_stacks(stacks: bool) -> None:
    found = operators_of(measured("cpu", stacks=stacks))

    assert all(name for _, name, _ in found)
    assert {"aten::sigmoid", "aten::native_layer_norm"} <= {name for _, name, _ in found}
    assert {"(SigmoidBackward0)", "(NativeLayerNormBackward0)"} <= {node for *_, node in found}
    # What a program's own backward makes is of no node of C++.
    assert ("aten::mul", "") in {(name, node) for _, name, node in found}


@pytest.mark.virtual_gpu
def test_without_stacks_cuda_names_none() -> None:
    assert {name for _, name, _ in operators_of(measured("cuda", stacks=False))} == {""}
