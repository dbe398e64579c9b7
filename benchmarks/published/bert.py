"""BERT-large trained to tell two classes, as a Trainer of January 2022 did, with torch 1.10, in seven ways.

Written anew from what transformers' page of that time says. Three things of that time decide the figures, and are done
here as they were then: softmax kept what it was given beside what it gave (pytorch issue 64000), ``zero_grad`` filled
gradients with zeros, and cuBLAS took its workspaces from CUDA, so that they are in no figure of torch's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":0:0"  # none from torch's allocator

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

WIDTH, HEADS, LAYERS, LENGTH, VOCABULARY = 1024, 16, 24, 512, 30522
DROPOUT = 0.1


class Softmax(torch.autograd.Function):
    """As torch had it before 1.11."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        result = torch.softmax(x, dim=-1)
        ctx.save_for_backward(x, result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        x, result = ctx.saved_tensors
        return torch.ops.aten._softmax_backward_data(gradients[0], result, -1, x.dtype)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query = self.query(x)
        key, value = self._heads(self.key(x)), self._heads(self.value(x))
        query = self._heads(query)
        scores = query @ key.transpose(-1, -2)
        scores = scores / (WIDTH // HEADS) ** 0.5
        scores = scores + mask
        weights = Softmax.apply(scores)
        weights = self.dropout(weights)
        found = weights @ value
        return found.permute(0, 2, 1, 3).contiguous().flatten(2)

    @staticmethod
    def _heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], HEADS, -1).permute(0, 2, 1, 3)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense, self.norm, self.dropout = nn.Linear(width, WIDTH), nn.LayerNorm(WIDTH), nn.Dropout(DROPOUT)

    def forward(self, x: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        x = self.dense(x)
        x = self.dropout(x)
        return self.norm(x + shortcut)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.joined = Attention(), Residual(WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), Residual(4 * WIDTH)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        found = self.attention(x, mask)
        found = self.joined(found, x)
        inner = self.wide(found)
        inner = F.gelu(inner)
        return self.narrow(inner, found)


class Bert(nn.Module):
    def __init__(self, *, checkpointing: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        self.positions, self.kinds = nn.Embedding(LENGTH, WIDTH), nn.Embedding(2, WIDTH)
        self.norm, self.dropout = nn.LayerNorm(WIDTH), nn.Dropout(DROPOUT)
        self.register_buffer("places", torch.arange(LENGTH).expand(1, -1))
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.pooler, self.classifier = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)
        self.checkpointing = checkpointing

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        seen = torch.ones(tokens.shape, device=tokens.device)
        kinds = torch.zeros_like(tokens)
        mask = (1.0 - seen[:, None, None, :]) * -10000.0
        x = self.words(tokens) + self.kinds(kinds)
        x += self.positions(self.places)
        x = self.dropout(self.norm(x))
        for layer in self.layers:
            x = checkpoint(layer, x, mask, use_reentrant=True) if self.checkpointing else layer(x, mask)
        first = torch.tanh(self.pooler(x[:, 0]))
        return self.classifier(self.dropout(first))


class AdamW(torch.optim.Optimizer):
    """transformers' own of that time: a parameter after another."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 5e-5})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for each in group["params"]:
                if not (state := self.state[each]):
                    state["mean"], state["square"] = torch.zeros_like(each), torch.zeros_like(each)
                state["mean"].mul_(0.9).add_(each.grad, alpha=0.1)
                state["square"].mul_(0.999).addcmul_(each.grad, each.grad, value=0.001)
                denominator = state["square"].sqrt().add_(1e-8)
                each.addcdiv_(state["mean"], denominator, value=-group["lr"])


class Adafactor(torch.optim.Optimizer):
    """transformers' own, without a first moment: a row and a column in place of a matrix."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 5e-5})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for each in group["params"]:
                gradient, state = each.grad, self.state[each]
                if not state and each.dim() > 1:
                    state["row"] = torch.zeros(each.shape[:-1]).to(gradient)
                    state["column"] = torch.zeros(each.shape[:-2] + each.shape[-1:]).to(gradient)
                elif not state:
                    state["square"] = torch.zeros_like(gradient)
                each.norm(2)
                update = (gradient**2) + 1e-30
                if each.dim() > 1:
                    state["row"].mul_(0.5).add_(update.mean(dim=-1), alpha=0.5)
                    state["column"].mul_(0.5).add_(update.mean(dim=-2), alpha=0.5)
                    row = (state["row"] / state["row"].mean(dim=-1, keepdim=True)).rsqrt_().unsqueeze(-1)
                    update = torch.mul(row, state["column"].unsqueeze(-2).rsqrt())
                    update.mul_(gradient)
                else:
                    state["square"].mul_(0.5).add_(update, alpha=0.5)
                    update = state["square"].rsqrt().mul_(gradient)
                update.div_((update.norm(2) / update.numel() ** 0.5).clamp_(min=1.0))
                update.mul_(group["lr"])
                each.add_(-update)


@dataclass(frozen=True)
class Run:
    batch: int = 4
    accumulated: int = 1
    checkpointing: bool = False
    half: bool = False
    optimizer: type[torch.optim.Optimizer] = AdamW


def train(run: Run, *, steps: int = 4) -> int:
    """What is in use on the device after an epoch."""
    small = torch.ones((1, 1)).to("cuda")
    model = Bert(checkpointing=run.checkpointing).to("cuda")
    optimizer = run.optimizer(model.parameters())
    scaler = torch.amp.GradScaler("cuda", enabled=run.half)
    losses = torch.tensor(0.0).to("cuda")
    model.train()
    model.zero_grad(set_to_none=False)
    for _ in range(steps):
        for _ in range(run.accumulated):
            tokens = torch.zeros(run.batch, LENGTH, dtype=torch.long).to("cuda")
            labels = torch.zeros(run.batch, dtype=torch.long).to("cuda")
            with torch.autocast("cuda", torch.float16, enabled=run.half):
                loss = F.cross_entropy(model(tokens), labels)
            if run.accumulated > 1:
                loss = loss / run.accumulated
            scaler.scale(loss).backward()
            losses += loss.detach()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False)
        scaler.step(optimizer)
        scaler.update()
        model.zero_grad(set_to_none=False)
    del small
    free, total = torch.cuda.mem_get_info()
    return total - free
