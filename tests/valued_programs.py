"""Small programs that train, on any device: their losses on a virtual GPU are held against the CPU's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import nn

STEPS = 4


class SmallGPT(nn.Module):
    def __init__(self, width: int = 64, heads: int = 4, words: int = 100) -> None:
        super().__init__()
        self.heads = heads
        self.words, self.qkv, self.out = (
            nn.Embedding(words, width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.norms = nn.LayerNorm(width), nn.RMSNorm(width)
        self.before, self.after = self.norms
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.head = nn.Linear(width, words)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens)
        count, length, width = x.shape
        q, k, v = (
            self.qkv(self.before(x)).view(count, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(count, length, width))
        return self.head(x + self.feed(self.after(x))).flatten(0, 1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(16, 32, 2, batch_first=True, bidirectional=True), nn.GRU(64, 16, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(self.lstm(x)[0])[0][:, -1])


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.head = nn.LSTMCell(16, 32), nn.GRUCell(32, 16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = c = x.new_zeros(x.shape[0], 32)
        g = x.new_zeros(x.shape[0], 16)
        for moment in x.unbind(1):
            h, c = self.lstm(moment, (h, c))
            g = self.gru(h, g)
        return self.head(g)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(16, 10),
    )


class Spectral(nn.Module):
    """A filter between two Fourier transforms, and its answers whitened by a factorization."""

    def __init__(self) -> None:
        super().__init__()
        self.filter, self.head = nn.Parameter(torch.rand(3, 16, 9)), nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.fft.irfft2(torch.fft.rfft2(x.float()) * self.filter, s=x.shape[-2:]).unflatten(2, (4, 4)).mean((3, 4))
        flat = x.flatten(1)
        spread = flat.T @ flat + torch.eye(12, device=x.device)
        white = torch.linalg.solve_triangular(torch.linalg.cholesky(spread), flat.T, upper=False).T
        return self.head(white * torch.linalg.svdvals(spread).sqrt() + torch.linalg.solve(spread, flat.T).T)


class Graph(nn.Module):
    """Messages along a ring, by a product with its sparse matrix."""

    def __init__(self) -> None:
        super().__init__()
        here = torch.arange(8)
        self.register_buffer("rows", torch.arange(0, 17, 2))
        self.register_buffer("columns", torch.stack([(here - 1) % 8, (here + 1) % 8], 1).sort().values.flatten())
        self.hidden, self.head = nn.Linear(16, 32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.full((16,), 0.5, device=x.device)
        ring = torch.sparse_csr_tensor(self.rows, self.columns, weights, (8, 8), check_invariants=False)
        return self.head(self.along(ring, F.relu(self.along(ring, self.hidden(x)))))

    def along(self, ring: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):  # CUDA multiplies sparse matrices in full precision only
            return ring @ x.float()


PROGRAMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "mlp": (mlp, (16, 3, 4, 4), 10),
    "cnn": (cnn, (8, 3, 16, 16), 10),
    "gpt": (SmallGPT, (4, 32), 100),
    "lstm": (Recurrent, (8, 12, 16), 10),
    "cells": (Cells, (8, 5, 16), 10),
    "spectral": (Spectral, (8, 3, 16, 16), 10),
    "graph": (Graph, (8, 16), 10),
}
"""How each is made, the shape of its batch, and how many classes there are."""


def train(name: str, device: str, autocast: torch.dtype | None = None) -> list[float]:
    """Train from a seed; returns the losses."""
    make, shape, classes = PROGRAMS[name]
    torch.manual_seed(0)
    model = make().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator)
    if name == "gpt":
        x = torch.randint(classes, shape, generator=generator)
    y = torch.randint(classes, (x.numel() if name == "gpt" else shape[0],), generator=generator)
    losses = []
    for _ in range(STEPS):
        with ExitStack() as stack:
            if device == "cpu":  # whose oneDNN has no LSTM in bfloat16 without AVX-512
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            if autocast:
                stack.enter_context(torch.autocast(device, autocast))
            loss = F.cross_entropy(model(x.to(device)), y.to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses
