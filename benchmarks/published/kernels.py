"""Single layers and kernels whose peaks were published, written anew from what their benchmarks do."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

HIDDEN, INTERMEDIATE = 4096, 11008
VOCABULARY = 128256


def _peak(iteration: Callable[[], None]) -> int:
    """``max_memory_allocated()`` of an iteration that is not the first: the median of ten, as Liger-Kernel takes it."""
    peaks = []
    for _ in range(10):
        torch.cuda.reset_peak_memory_stats()
        iteration()
        peaks.append(torch.cuda.max_memory_allocated())
    return sorted(peaks)[4]


# -- Liger-Kernel: what its kernels are measured against, forward and backward, gradients kept between iterations ------


def cross_entropy(vocabulary: int) -> int:
    logits = torch.randn(8 * 2048, vocabulary, device="cuda", requires_grad=True)
    target = torch.randint(vocabulary, (8 * 2048, 1), device="cuda").squeeze(1)
    return _peak(lambda: F.cross_entropy(logits, target).backward())


def linear_cross_entropy(rows: int) -> int:
    """Beside the head that is measured lies the one that it is compared with."""
    _other, head = (nn.Linear(HIDDEN, VOCABULARY, bias=False, dtype=torch.bfloat16).to("cuda") for _ in range(2))
    x = torch.randn(rows, HIDDEN, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    target = torch.randint(VOCABULARY, (rows, 1), device="cuda").squeeze(1)
    return _peak(lambda: F.cross_entropy(head(x), target).backward())


class GatedMLP(nn.Module):
    """The feed-forward part of a Llama block."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, INTERMEDIATE, bias=False)
        self.up = nn.Linear(HIDDEN, INTERMEDIATE, bias=False)
        self.down = nn.Linear(INTERMEDIATE, HIDDEN, bias=False)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.activation(self.gate(x)) * self.up(x))


def _gated(activation: nn.Module, batch: int, length: int) -> int:
    x = torch.randn(batch, length, HIDDEN, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    layer = GatedMLP(activation).to("cuda").to(torch.bfloat16)

    def iteration() -> None:
        y = layer(x)
        y.backward(torch.randn_like(y), retain_graph=True)

    return _peak(iteration)


def geglu(length: int) -> int:
    return _gated(nn.GELU(approximate="tanh"), 8, length)


def swiglu(length: int) -> int:
    return _gated(nn.SiLU(), 4, length)


class RMSNorm(nn.Module):
    """A Llama's, computed in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = x.dtype
        x = x.to(torch.float32)
        mean = x.pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(mean + 1e-6)
        return self.weight * x.to(given)


def _norm(layers: tuple[nn.Module, nn.Module], rows: int, width: int, dtype: torch.dtype) -> int:
    """The second of the layers is measured; the first lies beside it."""
    _other, layer = (each.to("cuda") for each in layers)
    x = torch.randn(rows, width, dtype=dtype, device="cuda")
    gradient = torch.randn_like(x)
    x.requires_grad_()
    return _peak(lambda: layer(x).backward(gradient, retain_graph=True))


def layer_norm(width: int) -> int:
    return _norm((nn.LayerNorm(width), nn.LayerNorm(width, eps=1e-6)), 4096, width, torch.float32)


def rms_norm(width: int) -> int:
    return _norm((RMSNorm(width), RMSNorm(width)), 2048, width, torch.bfloat16)


# -- a course's benchmark of attention ---------------------------------------------------------------------------------


def attention(length: int, width: int) -> int:
    """Attention by hand, 8 heads of one batch; peak of the backward passes after many forward passes."""
    query, key, value = (torch.randn(8, length, width, device="cuda", requires_grad=True) for _ in range(3))

    def forward() -> torch.Tensor:
        scores = query @ key.transpose(-2, -1) / math.sqrt(width)
        return torch.softmax(scores, dim=-1) @ value

    for _ in range(10):
        out = forward()
        loss = out.sum()
        loss.backward()
        query.grad = key.grad = value.grad = None
    torch.cuda.reset_peak_memory_stats()
    for _ in range(100):
        out = forward()
    out = forward()
    loss = out.sum()
    for _ in range(100):
        loss.backward(retain_graph=True)
    return torch.cuda.max_memory_allocated()
