"""The largest recorded program, written anew: a language model whose linear layers leave their outputs transposed.

Weights come first in its products, so what they give has the features in the outer dimension of memory; what follows is
read and copied in that order. Called with torch imported, as those of ``programs`` are.
"""

from __future__ import annotations

import math

import torch
from programs import Embedding, Record
from torch import nn


class Linear(nn.Module):
    """A weight of [out, in] times its input: what torch 2.6 made of ``einsum("oi,...i->...o", weight, x)``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, device="cuda"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(0, -2).T
        return torch.bmm(self.weight[None], flat[None]).squeeze(0).T.unflatten(0, x.shape[:-1])


class RMSNorm(nn.Module):
    """Root mean square norm, from the norm of the vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, device="cuda"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = torch.sqrt(norm**2 / x.shape[-1] + 1e-5)
        return torch.einsum("d,bsd->bsd", self.weight, x / scale)


class SwiGLU(nn.Module):
    """The gated feed-forward layer; the gate's product comes after both others."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w1 = Linear(width, inner)
        self.w2 = Linear(inner, width)
        self.w3 = Linear(width, inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.w1(x), self.w3(x)
        return self.w2(torch.sigmoid(gate) * gate * up)


class Rotary(nn.Module):
    """Rotary positions; each layer has a table of its own, cosines and sines side by side."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(length, width // 2, 2, device="cuda"), persistent=False)

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        pairs = x.unflatten(-1, (-1, 2))
        cos = self.table[positions, :, 0].unsqueeze(1)
        sin = self.table[positions, :, 1].unsqueeze(1)
        rotated = torch.zeros_like(pairs)
        rotated[..., 0] = cos * pairs[..., 0] - sin * pairs[..., 1]
        rotated[..., 1] = sin * pairs[..., 0] + cos * pairs[..., 1]
        return rotated.reshape(x.shape)


def _softmax(x: torch.Tensor) -> torch.Tensor:
    largest = torch.max(x, dim=-1, keepdim=True)[0]
    exponentials = torch.exp(x - largest)
    return exponentials / torch.sum(exponentials, dim=-1, keepdim=True)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    scores = torch.einsum("...qd,...kd->...qk", q, k)
    scores = scores / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(mask.eq(False), -1e9)
    weights = _softmax(scores)
    return torch.einsum("...qk,...kd->...qd", weights, v)


class SelfAttention(nn.Module):
    """Causal attention of several heads; what a name holds until the end of a call is part of the recording."""

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (Linear(width, width) for _ in range(4))
        self.rotary = Rotary(length, width // heads)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        flat_q, flat_k, flat_v = self.q(x), self.k(x), self.v(x)
        q, k, v = self._split(flat_q), self._split(flat_k), self._split(flat_v)
        positions = torch.arange(length, device=x.device).unsqueeze(0).expand(batch, -1)
        q = self.rotary(q, positions)
        k = self.rotary(k, positions)
        mask = torch.triu(torch.ones(length, length, device=x.device), diagonal=1).to(torch.bool)
        mask = ~mask
        y = _attention(q, k, v, mask.expand(batch, self.heads, -1, -1))
        y = y.transpose(-2, -3).flatten(-2)
        return self.out(y)


class Block(nn.Module):
    """Norm, attention, norm, feed-forward, each with a residual."""

    def __init__(self, width: int, heads: int, inner: int, length: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attention = SelfAttention(width, heads, length)
        self.norm2 = RMSNorm(width)
        self.ffn = SwiGLU(width, inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        part = self.norm1(x)
        part = self.attention(part)
        x = x + part
        part = self.norm2(x)
        part = self.ffn(part)
        return x + part


class TransposedModel(nn.Module):
    """Embedding, blocks, norm, head."""

    def __init__(self, *, words: int, length: int, width: int, layers: int, heads: int, inner: int) -> None:
        super().__init__()
        self.embedding = Embedding(words, width)
        self.blocks = nn.ModuleList(Block(width, heads, inner, length) for _ in range(layers))
        self.norm = RMSNorm(width)
        self.head = Linear(width, words)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x)


def indexed_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean negative log likelihood; the rows' numbers are made on the host."""
    logits, targets = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    largest = torch.max(logits, dim=-1, keepdim=True)[0]
    logits = logits - largest
    sums = torch.exp(logits).sum(dim=-1)
    chosen = logits[torch.arange(len(targets)), targets]
    losses = torch.log(sums) - chosen
    return losses.mean()


class AdamW(torch.optim.Optimizer):
    """AdamW parameter by parameter; state comes at its parameter's first turn, the last denominator is still held."""

    def __init__(self, parameters: object) -> None:
        super().__init__(parameters, {"rate": 1e-4, "decay": 0.01})  # type: ignore[arg-type]

    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state, grad = self.state[p], p.grad.data
                if not state:
                    state["m"], state["v"] = torch.zeros_like(p.data), torch.zeros_like(p.data)
                m, v = state["m"], state["v"]
                m.mul_(0.9).add_(grad, alpha=0.1)
                v.mul_(0.95).addcmul_(grad, grad, value=0.05)
                denominator = (v.sqrt() / math.sqrt(0.05)).add_(1e-8)
                p.data.addcdiv_(m, denominator, value=-group["rate"])
                p.data.add_(p.data, alpha=-group["rate"] * group["decay"])


LARGEST = {"words": 10000, "width": 2560, "layers": 32, "heads": 32, "inner": 10240}


def first_step(record: Record, length: int = 128) -> None:
    """The first full training step, batch 4, where only forwards ran before; the tokens are the targets."""
    model = TransposedModel(length=length, **LARGEST)
    optimizer = AdamW(model.parameters())
    tokens = torch.zeros(4, length, dtype=torch.long, device="cuda")
    with torch.no_grad():
        model(tokens)
    with record():
        optimizer.zero_grad()
        logits = model(tokens)
        loss = indexed_cross_entropy(logits, tokens)
        loss.backward()
        optimizer.step()
