"""A GPT of 124 million parameters, trained with a change more each time: what is reserved at the end of an epoch.

Written anew from what rasbt/LLMs-from-scratch says of its scripts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS, LAYERS, LENGTH = 768, 12, 12, 1024
DROPOUT = 0.1
VOCABULARY, BATCH = 50257, 8


@dataclass(frozen=True)
class Changes:
    """What was changed, one after another."""

    keeps_mask: bool = True
    """The mask lies on the card, in every block."""
    fused: bool = False
    dtype: torch.dtype = torch.float32
    by_hand: bool = True
    """Normalization and activation are not torch's."""
    flash: bool = False


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.shift = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=-1, keepdim=True)
        variance = x.var(dim=-1, keepdim=True, unbiased=False)
        normal = (x - mean) / torch.sqrt(variance + 1e-5)
        return self.scale * normal + self.shift


class Gelu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.sqrt(torch.tensor(2.0 / math.pi)) * (x + 0.044715 * torch.pow(x, 3))
        return 0.5 * x * (1 + torch.tanh(inner))


class Attention(nn.Module):
    """Each of query, key and value by a layer of its own; the scores are masked in place."""

    def __init__(self, changes: Changes) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(DROPOUT)
        self.keeps_mask = changes.keeps_mask
        if changes.keeps_mask:
            self.register_buffer("mask", torch.triu(torch.ones(LENGTH, LENGTH), diagonal=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        key, query, value = (
            layer(x).view(batch, length, HEADS, -1).transpose(1, 2) for layer in (self.key, self.query, self.value)
        )
        scores = query @ key.transpose(2, 3)
        if self.keeps_mask:
            mask = self.mask.bool()[:length, :length]
        else:
            mask = torch.triu(torch.ones(length, length, dtype=torch.bool, device=x.device), diagonal=1)
        scores.masked_fill_(mask, -torch.inf)
        weights = self.dropout(torch.softmax(scores / key.shape[-1] ** 0.5, dim=-1))
        found = (weights @ value).transpose(1, 2)
        return self.out(found.reshape(batch, length, WIDTH))


class FlashAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x)
        qkv = qkv.view(batch, length, 3, HEADS, -1)
        qkv = qkv.permute(2, 0, 3, 1, 4)
        query, key, value = qkv
        dropout = DROPOUT if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        found = found.transpose(1, 2).contiguous().view(batch, length, WIDTH)
        return self.out(found)


class Block(nn.Module):
    def __init__(self, changes: Changes) -> None:
        super().__init__()
        norm = Norm if changes.by_hand else lambda: nn.LayerNorm(WIDTH)
        gelu = Gelu() if changes.by_hand else nn.GELU(approximate="tanh")
        self.attention = FlashAttention() if changes.flash else Attention(changes)
        self.feed_forward = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), gelu, nn.Linear(4 * WIDTH, WIDTH))
        self.first, self.second = norm(), norm()
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x
        x = self.first(x)
        x = self.attention(x)
        x = self.dropout(x)
        x = x + shortcut
        shortcut = x
        x = self.second(x)
        x = self.feed_forward(x)
        x = self.dropout(x)
        return x + shortcut


class GPT(nn.Module):
    def __init__(self, changes: Changes) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.dropout = nn.Dropout(DROPOUT)
        self.blocks = nn.Sequential(*(Block(changes) for _ in range(LAYERS)))
        self.norm = Norm() if changes.by_hand else nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        embedded = self.tokens(tokens)
        positions = self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        x = embedded + positions
        x = self.dropout(x)
        x = self.blocks(x)
        x = self.norm(x)
        return self.head(x)


def _loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    tokens, target = (each.to("cuda") for each in batch)
    logits = model(tokens)
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def _generate(model: nn.Module) -> None:
    tokens = torch.zeros(1, 4, dtype=torch.long).to("cuda")
    for _ in range(50):
        with torch.no_grad():
            logits = model(tokens[:, -LENGTH:])
        logits = logits[:, -1, :]
        tokens = torch.cat((tokens, logits.argmax(dim=-1, keepdim=True)), dim=1)


def epoch(changes: Changes, *, steps: int = 16, every: int = 15) -> int:
    """``memory_reserved()`` after an epoch, evaluated after its first and 16th step, and a text of 50 tokens."""
    model = GPT(changes)
    model.to("cuda").to(changes.dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.1, fused=changes.fused or None)
    batch = tuple(torch.zeros(BATCH, LENGTH, dtype=torch.long) for _ in range(2))
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        loss = _loss(model, batch)
        loss.backward()
        optimizer.step()
        if step % every == 0:
            model.eval()
            with torch.no_grad():
                for _ in range(2):
                    _loss(model, batch).item()
            model.train()
    model.eval()
    _generate(model)
    return torch.cuda.memory_reserved()


def _changes() -> dict[str, Changes]:
    """Each with those before it."""
    found = {"original": Changes()}
    for name, change in (
        ("mask_on_the_fly", {"keeps_mask": False}),
        ("fused", {"fused": True}),
        ("bfloat16", {"dtype": torch.bfloat16}),
        ("torch_layers", {"by_hand": False}),
        ("flash", {"flash": True}),
    ):
        found[name] = replace([*found.values()][-1], **change)
    return found


CHANGES = _changes()
