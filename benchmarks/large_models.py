"""Three published models, written down with torch alone: GPT-2 medium, ViT-L/16, and Llama 3 8B with LoRA.

Their shapes are those of the published configurations. On the meta device they take no memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

# -- GPT-2 medium: 24 blocks of width 1024, 16 heads, 50,257 tokens, 1,024 positions --


class CausalAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, width = x.shape
        split = (part.view(rows, length, self.heads, -1).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(*split, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).reshape(rows, length, width))


class GPTBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), CausalAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width), nn.Dropout(0.1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    def __init__(self, width: int = 1024, layers: int = 24, heads: int = 16, words: int = 50_257) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(words, width), nn.Embedding(1024, width)
        self.h = nn.ModuleList(GPTBlock(width, heads) for _ in range(layers))
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def token_loss(output: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(output.flatten(0, 1), batch[1].flatten())


def tokens(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(rows, length, dtype=torch.long), torch.zeros(rows, length, dtype=torch.long)


# -- ViT-L/16: 24 blocks of width 1024, 16 heads, patches of 16 --


class ViTBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.ln_1(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class ViT(nn.Module):
    def __init__(self, width: int = 1024, layers: int = 24, heads: int = 16, classes: int = 1000) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(3, width, 16, 16)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 14 * 14 + 1, width))
        self.blocks = nn.ModuleList(ViTBlock(width, heads) for _ in range(layers))
        self.ln, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.conv_proj(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x)[:, 0])


def class_loss(output: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(output, batch[1])


# -- Llama 3 8B: 32 blocks of width 4096, 32 heads on 8 of keys and values, 128,256 tokens --


class LoRALinear(nn.Module):
    """A frozen linear layer in bfloat16, and a product of two small matrices that train."""

    def __init__(self, inside: int, outside: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(inside, outside, bias=False, dtype=torch.bfloat16).requires_grad_(False)
        self.a, self.b = nn.Linear(inside, rank, bias=False), nn.Linear(rank, outside, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.b(self.a(x.to(self.a.weight.dtype))).to(x.dtype)


class LlamaBlock(nn.Module):
    def __init__(self, rank: int, width: int = 4096, heads: int = 32, shared: int = 8, inside: int = 14_336) -> None:
        super().__init__()
        self.heads, self.shared = heads, shared
        small = width // heads * shared
        self.input_norm = nn.RMSNorm(width, dtype=torch.bfloat16).requires_grad_(False)
        self.q_proj, self.v_proj = LoRALinear(width, width, rank), LoRALinear(width, small, rank)
        self.k_proj = nn.Linear(width, small, bias=False, dtype=torch.bfloat16).requires_grad_(False)
        self.o_proj = nn.Linear(width, width, bias=False, dtype=torch.bfloat16).requires_grad_(False)
        self.mlp_norm = nn.RMSNorm(width, dtype=torch.bfloat16).requires_grad_(False)
        self.gate_proj = nn.Linear(width, inside, bias=False, dtype=torch.bfloat16).requires_grad_(False)
        self.up_proj = nn.Linear(width, inside, bias=False, dtype=torch.bfloat16).requires_grad_(False)
        self.down_proj = nn.Linear(inside, width, bias=False, dtype=torch.bfloat16).requires_grad_(False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        normed = self.input_norm(x)
        rows, length, _ = x.shape

        def by_head(of: torch.Tensor, heads: int) -> torch.Tensor:
            return of.view(rows, length, heads, -1).transpose(1, 2)

        queries = _rotated(by_head(self.q_proj(normed), self.heads), cos, sin)
        keys = _rotated(by_head(self.k_proj(normed), self.shared), cos, sin)
        values = by_head(self.v_proj(normed), self.shared)
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
        x = x + self.o_proj(mixed.transpose(1, 2).reshape(rows, length, -1))
        normed = self.mlp_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(normed)) * self.up_proj(normed))


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class LlamaWithLoRA(nn.Module):
    def __init__(self, rank: int = 16, width: int = 4096, layers: int = 32, words: int = 128_256) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(words, width, dtype=torch.bfloat16).requires_grad_(False)
        self.layers = nn.ModuleList(LlamaBlock(rank, width) for _ in range(layers))
        self.norm = nn.RMSNorm(width, dtype=torch.bfloat16).requires_grad_(False)
        self.lm_head = nn.Linear(width, words, bias=False, dtype=torch.bfloat16).requires_grad_(False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(tokens)
        angles = torch.zeros(tokens.shape[1], 128, device=x.device, dtype=x.dtype)
        cos, sin = angles.cos(), angles.sin()
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.norm(x))
