"""The programs behind the recordings, written anew from what the recordings show and what is said of them.

Each function is one program; it is called with torch imported, and ``record`` around what was recorded. How a program
names and drops its variables is part of it: a local that lives a line longer moves an event.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

Record = Callable[[], AbstractContextManager[None]]


# ---- short scripts, from an empty allocator


def double_multiplication(record: Record) -> None:
    """A weight that is used twice: 1 GiB each, forward and backward."""
    with record():
        x = torch.ones(16384, 16384, device="cuda")
        w = torch.ones(16384, 16384, device="cuda", requires_grad=True)
        y = (w * x) * w
        loss = y.sum()
        del y
        loss.backward()


def _powers(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    y = w * x
    y = w * y
    for _ in range(3):
        y = y**3
    return y


def powers(record: Record, checkpointed: bool = False) -> None:
    """Two products and three powers of 1 GiB tensors, with and without an activation checkpoint around them."""
    from torch.utils.checkpoint import checkpoint

    with record():
        x = torch.ones(16384, 16384, device="cuda", requires_grad=True)
        w = torch.ones(16384, 16384, device="cuda", requires_grad=True)
        out = checkpoint(_powers, x, w, use_reentrant=False) if checkpointed else _powers(x, w)
        total = out.sum()
        del out
        loss = total.sum()
        loss.backward()


def adam(record: Record, modes: tuple[bool, ...]) -> None:
    """A model of six weights of 16 bytes, once for every mode: foreach, then a loop over the parameters."""

    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList(torch.ones(2, 2, device="cuda") for _ in range(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for weight in self.weights:
                x = weight * x
            return x

    with record():
        for foreach in modes:
            model = Products()
            loss = model(torch.ones(2, 2, device="cuda")).sum()
            optimizer = torch.optim.Adam(model.parameters(), foreach=foreach)
            loss.backward()
            optimizer.step()


# ---- attention by hand


def softmax(x: torch.Tensor) -> torch.Tensor:
    """The stable form, in four kernels."""
    largest = torch.max(x, dim=-1, keepdim=True)[0]
    exponentials = torch.exp(x - largest)
    return exponentials / torch.sum(exponentials, dim=-1, keepdim=True)


def naive_attention(record: Record, d: int = 16, t: int = 4096) -> int:
    """Batch 8, one head, fp32. Returns ``memory_allocated()`` just before the backward."""

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = torch.einsum("bqd,bkd->bqk", q, k) / math.sqrt(d)
        weights = softmax(scores)
        return torch.einsum("bqk,bkd->bqd", weights, v)

    with record():
        q, k, v = (torch.ones(8, t, d, device="cuda", requires_grad=True) for _ in range(3))
        out = attention(q, k, v)
        loss = out.sum()
        before = torch.cuda.memory_allocated()
        loss.backward()
    return before


# ---- a transformer language model


class Linear(nn.Module):
    """A product with a weight of [out, in], no bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, device="cuda"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("...i,oi->...o", x, self.weight)


class Embedding(nn.Module):
    """Rows of a table, by indexing."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(words, width, device="cuda"))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.weight[tokens]


class RMSNorm(nn.Module):
    """Root mean square norm with a weight, by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, device="cuda"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        x = x * scale
        return self.weight * x


class SwiGLU(nn.Module):
    """The gated feed-forward layer."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w1 = Linear(width, inner)
        self.w2 = Linear(inner, width)
        self.w3 = Linear(width, inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(_silu(self.w1(x)) * self.w3(x))


def _silu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


class Rotary(nn.Module):
    """Rotary positions, the pairs side by side."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        angles = torch.zeros(length, width // 2, device="cuda")
        self.register_buffer("cos", torch.cos(angles), persistent=False)
        self.register_buffer("sin", torch.sin(angles), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[-2]
        cos, sin = self.cos[:length], self.sin[:length]
        first, second = x.unflatten(-1, (-1, 2)).movedim(-1, 0)
        left = cos * first - sin * second
        right = sin * first + cos * second
        return torch.stack((left, right), dim=-1).flatten(-2)


def _softmax(x: torch.Tensor) -> torch.Tensor:
    shifted = x - torch.max(x, dim=-1, keepdim=True)[0]
    exponentials = torch.exp(shifted)
    return exponentials / torch.sum(exponentials, dim=-1, keepdim=True)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    scores = torch.einsum("...qd,...kd->...qk", q, k) / math.sqrt(q.shape[-1])
    scores = torch.where(mask, scores, float("-inf"))
    weights = _softmax(scores)
    return torch.einsum("...qk,...kd->...qd", weights, v)


class SelfAttention(nn.Module):
    """Causal attention of several heads, rotary positions, the mask made anew in every call."""

    def __init__(self, width: int, heads: int, rotary: Rotary) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(width, width)
        self.k = Linear(width, width)
        self.v = Linear(width, width)
        self.out = Linear(width, width)
        self.rotary = rotary

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        q, k, v = self._split(q), self._split(k), self._split(v)
        q = self.rotary(q)
        k = self.rotary(k)
        positions = torch.arange(x.shape[-2], device=x.device)
        mask = positions[:, None] >= positions[None, :]
        y = _attention(q, k, v, mask)
        y = y.transpose(-2, -3).flatten(-2).contiguous()
        return self.out(y)


class Block(nn.Module):
    """Norm, attention, norm, feed-forward, each with a residual."""

    def __init__(self, width: int, heads: int, inner: int, rotary: Rotary) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, rotary)
        self.ffn = SwiGLU(width, inner)
        self.norm1 = RMSNorm(width)
        self.norm2 = RMSNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attended = self.attention(self.norm1(x))
        middle = x + attended
        fed = self.ffn(self.norm2(middle))
        return middle + fed


class LanguageModel(nn.Module):
    """Embedding, blocks, norm, head."""

    def __init__(self, *, words: int, length: int, width: int, layers: int, heads: int, inner: int) -> None:
        super().__init__()
        self.embedding = Embedding(words, width)
        rotary = Rotary(length, width // heads)
        self.blocks = nn.ModuleList(Block(width, heads, inner, rotary) for _ in range(layers))
        self.norm = RMSNorm(width)
        self.head = Linear(width, words)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        embedded = self.embedding(x)
        x = embedded
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x)


def _log_softmax(x: torch.Tensor) -> torch.Tensor:
    largest = torch.max(x, dim=-1, keepdim=True)[0]
    x = x - largest
    return x - torch.log(torch.sum(torch.exp(x), dim=-1, keepdim=True))


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean negative log likelihood, by hand."""
    surprise = -_log_softmax(logits)
    return torch.mean(torch.gather(surprise, -1, targets.unsqueeze(-1)))


class LoopedAdamW(torch.optim.Optimizer):
    """AdamW that goes through the parameters one by one and makes its state anew in every step."""

    def __init__(self, parameters: object) -> None:
        super().__init__(parameters, {"rate": 1e-3, "decay": 0.01})  # type: ignore[arg-type]

    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                grad = p.grad.data
                p.data -= group["rate"] * group["decay"] * p.data
                m = state.get("m", torch.zeros_like(grad))
                v = state.get("v", torch.zeros_like(grad))
                new_m = 0.9 * m + 0.1 * grad
                new_v = 0.95 * v + 0.05 * torch.square(grad)
                p.data -= group["rate"] * new_m / (torch.sqrt(new_v) + 1e-8)
                state["m"], state["v"] = new_m, new_v


MEDIUM = {"words": 10000, "width": 1024, "layers": 24, "heads": 16, "inner": 4096}
SMALL = {"words": 10000, "width": 768, "layers": 12, "heads": 12, "inner": 3072}


def lm_training(record: Record, length: int, autocast: bool = False) -> None:
    """One warm training step of the medium model, batch 4, without the ``zero_grad`` before it."""
    model = LanguageModel(length=length, **MEDIUM)
    optimizer = LoopedAdamW(model.parameters())
    tokens = torch.zeros(4, length, dtype=torch.long, device="cuda")
    targets = torch.zeros(4, length, dtype=torch.long, device="cuda")
    precision = torch.autocast("cuda", torch.bfloat16) if autocast else nullcontext()
    for warm in (False, True):
        optimizer.zero_grad()
        logits = loss = None
        with record() if warm else nullcontext():
            with precision:
                logits = model(tokens)
                loss = cross_entropy(logits, targets)
            loss.backward()
            optimizer.step()
    del logits, loss


def lm_inference(record: Record, length: int, size: dict[str, int] = MEDIUM, *, cold: bool = False) -> None:
    """A forward without gradients, batch 4: one of a warm model, or the first five of a model just built."""
    model = LanguageModel(length=length, **size)
    tokens = torch.zeros(4, length, dtype=torch.long, device="cuda")
    with torch.no_grad():
        if not cold:
            model(tokens)
        with record():
            for _ in range(5 if cold else 1):
                model(tokens)
