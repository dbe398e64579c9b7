"""A large language model that is gone through layer by layer on one card, written anew: Qwen2.5 7B in half precision.

Each layer comes to the device, runs twice (to be looked at, and to go on) and goes back; then the cache is emptied.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from programs import Record
from torch import nn

LAYERS, WIDTH, INNER, HEADS, GROUPS, HEAD = 28, 3584, 18944, 28, 4, 128
BATCH, LENGTH = 14, 2048
Rotary = tuple[torch.Tensor, torch.Tensor]


class _RMSNorm(nn.Module):
    """Root mean square norm in single precision."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kind = x.dtype
        x = x.to(torch.float32)
        variance = x.pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(variance + 1e-6)
        return self.weight * x.to(kind)


def _half_turned(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _turned(q: torch.Tensor, k: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = (each.unsqueeze(1) for each in rotary)
    turned_q = (q * cos) + (_half_turned(q) * sin)
    turned_k = (k * cos) + (_half_turned(k) * sin)
    return turned_q, turned_k


def _for_all_heads(x: torch.Tensor) -> torch.Tensor:
    return x[:, :, None].expand(-1, -1, HEADS // GROUPS, -1, -1).flatten(1, 2)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    k, v = _for_all_heads(k), _for_all_heads(v)
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    joined = y.transpose(1, 2).contiguous()
    del y  # it goes before queries, keys and values do
    return joined


class _Attention(nn.Module):
    """Grouped queries; only what makes queries, keys and values has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, WIDTH)
        self.k, self.v = (nn.Linear(WIDTH, GROUPS * HEAD) for _ in range(2))
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        q = self.q(x).unflatten(-1, (-1, HEAD)).transpose(1, 2)
        k = self.k(x).unflatten(-1, (-1, HEAD)).transpose(1, 2)
        v = self.v(x).unflatten(-1, (-1, HEAD)).transpose(1, 2)
        q, k = _turned(q, k, rotary)
        y = _attend(q, k, v)
        y = y.flatten(2)
        result = self.out(y)
        del y
        return result


class _MLP(nn.Module):
    """The gated feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(WIDTH, INNER, bias=False) for _ in range(2))
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    """Norm, attention, norm, feed-forward, each with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = _Attention(), _MLP()
        self.norm1, self.norm2 = _RMSNorm(), _RMSNorm()

    def forward(self, x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        residual = x
        x = self.norm1(x)
        x = self.attention(x, rotary)
        x = residual + x
        residual = x
        x = self.norm2(x)
        x = self.mlp(x)
        return residual + x


@torch.no_grad()
def compress(layers: list[Layer], inputs: list[torch.Tensor], rotary: Rotary) -> torch.Tensor:
    """Take a batch of hidden states through all layers; nobody else holds it."""
    x = inputs.pop()
    for layer in layers:
        layer.to("cuda")
        layer(x, rotary)
        x = layer(x, rotary)
        layer.to_empty(device="cpu")  # as ``to``, but nothing is copied
        torch.cuda.empty_cache()
    return x


def layerwise(record: Record) -> None:
    """As often as the model has layers, one and the same."""
    with torch.device("meta"):
        layer = Layer().to(torch.float16)
    layers = [layer.to_empty(device="cpu")] * LAYERS
    inputs = [torch.zeros(BATCH, LENGTH, WIDTH, dtype=torch.float16, device="cuda")]
    cos, sin = (torch.zeros(1, LENGTH, HEAD, dtype=torch.float16, device="cuda") for _ in range(2))
    torch.mm(cos[0], sin[0].T)
    torch.cuda.empty_cache()
    with record():
        _outputs = compress(layers, inputs, (cos, sin))
