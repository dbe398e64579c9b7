"""Measured profiles compared: what was changed in the program is what is said."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import vramkit


class Block(nn.Module):
    """Two layers, whose activation in between is kept."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    """Equal blocks."""

    def __init__(self, blocks: int, *, recompute: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(256) for _ in range(blocks))
        self.recompute = recompute

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        return x


def measured(*, blocks: int = 4, batch: int = 1024, recompute: bool = False, compiled: bool = False) -> vramkit.Profile:
    """Two steps on the CPU, where there is nothing but tensors."""
    model: nn.Module = Net(blocks, recompute=recompute)
    if compiled:
        model = torch.compile(model, backend="eager")  # type: ignore[assignment]
    optimizer = torch.optim.Adam(model.parameters())
    with vramkit.profile(model, optimizer, device="cpu") as prof:
        for _ in range(2):
            model(torch.zeros(batch, 256)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return prof.result


@pytest.fixture(scope="module")
def before() -> vramkit.Profile:
    """What the others are compared with."""
    return measured()


def test_the_same_program_is_the_same(before: vramkit.Profile) -> None:
    comparison = vramkit.compare(before, measured())

    assert comparison.tensors == comparison.reasons == ()
    assert not comparison.exceeds("0%")


def test_twice_the_batch_is_twice_each_activation(before: vramkit.Profile) -> None:
    comparison = vramkit.compare(before, measured(batch=2048))

    said = "\n".join(comparison.reasons)
    assert "Inputs are 2 times as large." in said
    assert "it returns 2048x" in said
    assert "tensors are 2 times as large" in said
    activations = [row for row in comparison.tensors if row.category is vramkit.Category.ACTIVATION]
    assert activations
    assert all((row.count_after, row.size_after) == (row.count_before, 2 * row.size_before) for row in activations)


def test_more_blocks_are_counted(before: vramkit.Profile) -> None:
    comparison = vramkit.compare(before, measured(blocks=6))

    assert "6 modules, and there were 4" in "\n".join(comparison.reasons)
    row = next(row for row in comparison.modules if row.name == "Net.blocks.*.up")
    assert (row.count_before, row.count_after, row.kind) == (4, 6, "Linear")
    parameters = next(part for part in row.parts if part.name == "parameters")
    assert parameters.difference == 2 * 4 * (256 * 1024 + 1024)


def test_checkpointing_is_seen_as_a_recomputation(before: vramkit.Profile) -> None:
    comparison = vramkit.compare(before, measured(recompute=True))

    assert comparison.peak_allocated.difference < 0
    assert "its forward is run again in the backward, and was not" in "\n".join(comparison.reasons)


def test_a_compiled_model_is_matched_with_the_plain_one(before: vramkit.Profile) -> None:
    comparison = vramkit.compare(before, measured(compiled=True))

    named = [row for row in comparison.tensors if row.named]
    assert named == []
    assert all(row.count_before == row.count_after for row in comparison.modules if row.name)


class Attention(nn.Module):
    """One head of attention, of torch's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)


def attended(backend: SDPBackend) -> vramkit.Profile:
    """One step of it with a kernel."""
    model = nn.Sequential(nn.Linear(64, 64), Attention())
    with vramkit.profile(model, device="cpu") as prof, sdpa_kernel(backend):
        model(torch.zeros(4, 2, 256, 64)).sum().backward()
    return prof.result


def test_another_kernel_of_attention_is_said() -> None:
    comparison = vramkit.compare(attended(SDPBackend.FLASH_ATTENTION), attended(SDPBackend.MATH))

    assert "in Sequential.1: its attention kernel is math, and was flash;" in "\n".join(comparison.reasons)
