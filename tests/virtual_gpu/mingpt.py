"""minGPT and its trainer, written anew: attention and GELU by hand, the head not tied to the embedding.

Modules have the names of GPT-2's checkpoints, because the optimizer takes parameters in the order of their names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from programs import Record
from torch import nn


class _Attention(nn.Module):
    """Causal attention as a product, a mask and a softmax."""

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attn_dropout, self.resid_dropout = nn.Dropout(0.1), nn.Dropout(0.1)
        self.register_buffer("bias", torch.tril(torch.ones(length, length))[None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.c_attn(x).split(width, dim=2)
        k, q, v = (each.view(batch, length, self.heads, -1).transpose(1, 2) for each in (k, q, v))
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.bias[:, :, :length, :length] == 0, float("-inf"))
        scores = F.softmax(scores, dim=-1)
        scores = self.attn_dropout(scores)
        y = scores @ v
        y = y.transpose(1, 2).contiguous().view(batch, length, width)
        return self.resid_dropout(self.c_proj(y))


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = _Attention(width, heads, length)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})
        self.drop = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.drop(self.mlp["c_proj"](_gelu(self.mlp["c_fc"](self.ln_2(x)))))


class MinGPT(nn.Module):
    """A small, readable GPT with a dropout of a tenth; returns logits and loss."""

    def __init__(self, *, layers: int, width: int, heads: int, vocabulary: int, length: int) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocabulary, width),
                "wpe": nn.Embedding(length, width),
                "drop": nn.Dropout(0.1),
                "h": nn.ModuleList(_Block(width, heads, length) for _ in range(layers)),
                "ln_f": nn.LayerNorm(width),
            }
        )
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parts = self.transformer
        places = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        embedded, placed = parts["wte"](tokens), parts["wpe"](places)
        x = parts["drop"](embedded + placed)
        for block in parts["h"]:
            x = block(x)
        x = parts["ln_f"](x)
        logits = self.lm_head(x)
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))


class Trainer:
    """Zeroes the gradients between forward and backward, and keeps the loss; a run of one batch keeps nothing else."""

    def __init__(self, model: MinGPT) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(_groups(model), lr=5e-4, betas=(0.9, 0.95))
        self.loss: torch.Tensor | None = None

    def run(self, batch: Iterable[torch.Tensor]) -> None:
        """One training step."""
        x, y = (each.to("cuda") for each in batch)
        _logits, self.loss = self.model(x, y)
        self.model.zero_grad(set_to_none=True)
        self.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """Weights of linear layers decay; everything else does not."""
    decaying = {id(each.weight) for each in model.modules() if isinstance(each, nn.Linear)}
    parts: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for _, parameter in sorted(model.named_parameters()):
        parts[id(parameter) not in decaying].append(parameter)
    return [{"params": parts[0], "weight_decay": 0.1}, {"params": parts[1], "weight_decay": 0.0}]


LARGE = {"layers": 36, "width": 1280, "heads": 20, "vocabulary": 65, "length": 128}


def warm_step(record: Record, size: dict[str, int] = LARGE) -> None:
    """A warm training step, batch 32."""
    with torch.device("cuda"):
        trainer = Trainer(MinGPT(**size))
    batch = [torch.zeros(32, size["length"], dtype=torch.long) for _ in range(2)]
    trainer.run(batch)
    with record():
        trainer.run(batch)
