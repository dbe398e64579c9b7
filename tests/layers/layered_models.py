"""Models whose layers can be counted by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Repeated(nn.Module):
    """One layer and one activation function, called many times, as torchinfo's issue 144 has it."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.layer = nn.Linear(64, 64)
        self.tanh = nn.Tanh()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            x = self.tanh(self.layer(x))
        return x


class Mixed(nn.Module):
    """A parameter of its own beside layers, a list, a shared weight, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 8)
        self.scale = nn.Parameter(torch.ones(8, 8))
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens) @ self.scale
        for block in self.blocks:
            x = torch.relu(block(x))
        return self.head(self.frozen(x))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


class Named(nn.Module):
    """Takes its inputs by name, and returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = nn.Linear(10, 4)
        self.words = nn.Embedding(100, 4)

    def forward(self, *, x: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.numbers(x) + self.words(tokens)}


class Pair(Named):
    """The same, by position."""

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        return super().forward(x=x, tokens=tokens)


def classifier() -> nn.Module:
    """The multilayer perceptron of the demo, for grey images of 28x28."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def convolutional() -> nn.Module:
    """A small network for colour images."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
