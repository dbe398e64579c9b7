"""Programs whose peaks others have published, written anew from what is said of them, as arguments of an estimate.

What a program still holds while it goes on is part of it: a variable that is overwritten, logits of the step before,
gradients that are zeroed late. Each of those that measured several iterations is one step here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from programs import LanguageModel, LoopedAdamW, cross_entropy
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

Program = dict[str, Any]
"""Arguments of ``vramkit.estimate``."""


class Product(nn.Module):
    """A weight of shape (1024, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1024, 32))


def products(rows: int) -> Program:
    """Two iterations of 256 matrices, ``rows`` at a time; each part overwrites the one before."""
    model = Product()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step(matrices: torch.Tensor) -> None:
        for half in matrices.split(256):
            optimizer.zero_grad()
            for part in half.split(rows):
                x = part.to("cuda")
                y = x.matmul(model.weight)
                loss = y.sum()
                loss.backward()
            optimizer.step()

    return {"model": model, "batch": torch.zeros(512, 32, 1024), "optimizer": optimizer, "step": step, "steps": 1}


def sequential(checkpointed_only: bool) -> Program:
    """Three wide layers: checkpointed in two segments, and then, beside copies of those gradients, without."""
    model = nn.Sequential(
        nn.Linear(1000, 40000), nn.ReLU(), nn.Linear(40000, 1000), nn.ReLU(), nn.Linear(1000, 5), nn.ReLU()
    )

    def step(x: torch.Tensor) -> None:
        out = checkpoint_sequential([*model], 2, x.requires_grad_())
        model.zero_grad()
        out.sum().backward()
        if checkpointed_only:
            return
        kept = [out.detach().clone(), *(parameter.grad.clone() for parameter in model.parameters())]
        x = x.clone().detach_()
        out = model(x)
        kept.append(out.detach().clone())
        model.zero_grad()
        out.sum().backward()

    return {"model": model, "batch": torch.zeros(10, 1000, device="cuda"), "step": step, "steps": 1}


# -- language models ---------------------------------------------------------------------------------------------------


def language_model(length: int, size: dict[str, int], *, autocast: bool = False) -> Program:
    """Batches of 4, of which five wait on the device; the optimizer makes its state anew in every step."""
    model = LanguageModel(length=length, **size)
    optimizer = LoopedAdamW(model.parameters())

    def step(waiting: tuple[torch.Tensor, torch.Tensor]) -> None:
        x, y = (each[0].clone() for each in waiting)
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            logits = model(x)
            loss = cross_entropy(logits, y)
        loss.backward()
        optimizer.step()

    return {
        "model": model,
        "batch": (_tokens(5, 4, length), _tokens(5, 4, length)),
        "optimizer": optimizer,
        "step": step,
    }


def inference(length: int, size: dict[str, int], *, waiting: int = 0) -> Program:
    """Batches of 4, of which some wait on the device; to be estimated without gradients."""
    model = LanguageModel(length=length, **size)
    if not waiting:
        return {"model": model, "batch": _tokens(4, length)}

    def step(waiting: torch.Tensor) -> None:
        x = waiting[0].clone()
        model(x)

    return {"model": model, "batch": _tokens(waiting, 4, length), "step": step}


def _tokens(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.long, device="cuda")


class _Attention(nn.Module):
    """Causal attention as a product, a mask and a softmax."""

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.inside, self.outside = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.drop_scores, self.drop = nn.Dropout(0.1), nn.Dropout(0.1)
        self.register_buffer("mask", torch.tril(torch.ones(length, length))[None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.inside(x).split(width, dim=2)
        k, q, v = (each.view(batch, length, self.heads, -1).transpose(1, 2) for each in (k, q, v))
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.mask[:, :, :length, :length] == 0, float("-inf"))
        scores = F.softmax(scores, dim=-1)
        scores = self.drop_scores(scores)
        y = scores @ v
        y = y.transpose(1, 2).contiguous().view(batch, length, width)
        return self.drop(self.outside(y))


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, heads, length)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.drop(self.down(_gelu(self.up(self.norm2(x)))))


class MinGPT(nn.Module):
    """A small, readable GPT: attention and GELU by hand, dropout of a tenth, the head not tied to the embedding."""

    def __init__(self, *, layers: int, width: int, heads: int, vocabulary: int, length: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.drop = nn.Dropout(0.1)
        self.blocks = nn.ModuleList(_Block(width, heads, length) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        embedded, placed = self.tokens(tokens), self.places(places)
        x = self.drop(embedded + placed)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        logits = self.head(x)
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))


def mingpt(**size: int) -> Program:
    """minGPT's trainer: it zeroes the gradients between forward and backward, and keeps loss and logits till then."""
    with torch.device("meta"):
        model = MinGPT(**size)
    optimizer = torch.optim.AdamW(_groups(model), lr=5e-4, betas=(0.9, 0.95))
    kept: list[object] = []

    def step(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        x, y = (each.to("cuda") for each in batch)
        logits, loss = model(x, y)
        kept[:] = [x, y, logits, loss]
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    batch = tuple(torch.zeros(32, size["length"], dtype=torch.long) for _ in range(2))
    return {"model": model, "batch": batch, "optimizer": optimizer, "step": step}


def _groups(model: nn.Module) -> Iterable[dict[str, Any]]:
    """Weights of linear layers decay; everything else does not."""
    decaying = {id(each.weight) for each in model.modules() if isinstance(each, nn.Linear)}
    parts: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for _, parameter in sorted(model.named_parameters()):
        parts[id(parameter) not in decaying].append(parameter)
    return [{"params": parts[0], "weight_decay": 0.1}, {"params": parts[1], "weight_decay": 0.0}]
