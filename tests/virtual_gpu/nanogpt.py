"""nanoGPT and its loop, written anew: GPT-2 small without biases and dropout, attention by hand, tied weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

Batch = tuple[torch.Tensor, torch.Tensor]


class _Attention(nn.Module):
    """Causal attention as a product, a mask and a softmax."""

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.inside, self.outside = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.register_buffer("mask", torch.tril(torch.ones(length, length))[None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.inside(x).split(width, dim=2)
        k, q, v = (each.view(batch, length, self.heads, -1).transpose(1, 2) for each in (k, q, v))
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.mask[:, :, :length, :length] == 0, float("-inf"))
        scores = F.softmax(scores, dim=-1)
        y = scores @ v
        y = y.transpose(1, 2).contiguous().view(batch, length, width)
        return self.outside(y)


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(x)
        x = F.gelu(x)
        return self.down(x)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width, bias=False), _Attention(width, heads, length)
        self.norm2, self.mlp = nn.LayerNorm(width, bias=False), _MLP(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class NanoGPT(nn.Module):
    """GPT-2 small as nanoGPT trains it; returns logits and loss."""

    def __init__(
        self, *, layers: int = 12, width: int = 768, heads: int = 12, vocabulary: int = 50304, length: int = 1024
    ) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(_Block(width, heads, length) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width, bias=False), nn.Linear(width, vocabulary, bias=False)
        self.tokens.weight = self.head.weight

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        embedded, placed = self.tokens(tokens), self.places(places)
        x = embedded + placed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        logits = self.head(x)
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))


class Loop:
    """Evaluates before the first step, holds the next batch during the backward, keeps gradients and zeroes them."""

    def __init__(self, model: NanoGPT) -> None:
        self.model = model
        weights = list(model.parameters())
        groups = [
            {"params": [each for each in weights if each.dim() > 1], "weight_decay": 0.1},
            {"params": [each for each in weights if each.dim() == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)
        self.scaler = torch.amp.GradScaler("cuda")
        self.next: Batch | None = None
        self.loss: torch.Tensor | None = None

    def step(self, batch: Batch) -> None:
        """One training step in float16."""
        if self.next is None:
            self.next = _on_device(batch)
            self._evaluate(batch)
        with torch.autocast("cuda", torch.float16):
            logits, self.loss = self.model(*self.next)
        del logits
        self.next = _on_device(batch)
        self.scaler.scale(self.loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=False)

    @torch.no_grad()
    def _evaluate(self, batch: Batch) -> None:
        for _ in range(2):
            x, y = _on_device(batch)
            with torch.autocast("cuda", torch.float16):
                _logits, _loss = self.model(x, y)


def _on_device(batch: Batch) -> Batch:
    x, y = (each.to("cuda") for each in batch)
    return x, y
