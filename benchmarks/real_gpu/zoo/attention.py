"""Attention: each kernel of torch, forced and as torch chooses it, and the modules that use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .common import BF16, HALF, Part, Program, known, there_and_back, x

PROGRAMS: dict[str, Program] = {}

SHAPES = (
    (2, 8, 8, 512, 512, 64),
    (2, 8, 8, 333, 333, 64),
    (2, 8, 2, 256, 256, 128),
    (1, 4, 4, 128, 1024, 96),
    (4, 4, 4, 1, 777, 64),
    (1, 4, 4, 256, 256, 256),
    (2, 4, 4, 200, 200, 33),
    (2, 4, 4, 200, 200, 32),
    (1, 16, 16, 2048, 2048, 128),
    (1, 4, 4, 300, 300, 192),
)
"""Batch, heads of the queries and of the keys, lengths of both, head size."""


def attend(shape: tuple[int, ...], dtype: torch.dtype, **more: Any) -> torch.Tensor:
    batch, heads, groups, queries, keys, width = shape
    return F.scaled_dot_product_attention(
        x(batch, heads, queries, width, dtype=dtype),
        x(batch, groups, keys, width, dtype=dtype),
        x(batch, groups, keys, width, dtype=dtype),
        enable_gqa=heads != groups,
        **more,
    )


def forced(backend: SDPBackend, shape: tuple[int, ...], dtype: torch.dtype, **more: Any) -> torch.Tensor:
    with sdpa_kernel(backend):
        return attend(shape, dtype, **more)


def of_kernel(backend: SDPBackend, dtypes: tuple[torch.dtype, ...], *, masks: bool) -> Iterator[Part]:
    for dtype in dtypes:
        for shape in SHAPES:
            name = f"{'x'.join(map(str, shape))} {dtype}"
            for more in ({}, {"is_causal": True}, {"dropout_p": 0.1}):
                yield there_and_back(
                    f"{name} {more}",
                    lambda shape=shape, dtype=dtype, more=more: forced(backend, shape, dtype, **more),
                )
            if masks:
                yield from masked(backend, shape, dtype, name)


def masked(backend: SDPBackend, shape: tuple[int, ...], dtype: torch.dtype, name: str) -> Iterator[Part]:
    batch, heads, _, queries, keys, _ = shape
    makers = {
        "bool mask": lambda: torch.ones(queries, keys, dtype=torch.bool, device="cuda").tril(),
        "float mask": lambda: x(batch, 1, queries, keys, dtype=dtype, grad=False),
        "float mask of keys": lambda: x(batch, 1, 1, keys, dtype=dtype, grad=False),
        "float mask, learnt": lambda: x(1, heads, queries, keys, dtype=dtype),
    }
    for kind, make in makers.items():
        yield there_and_back(f"{name} {kind}", lambda make=make: forced(backend, shape, dtype, attn_mask=make()))


PROGRAMS["attention: flash"] = lambda: of_kernel(SDPBackend.FLASH_ATTENTION, (BF16, HALF), masks=False)
PROGRAMS["attention: efficient"] = lambda: of_kernel(SDPBackend.EFFICIENT_ATTENTION, (torch.float32, BF16), masks=True)
PROGRAMS["attention: cudnn"] = lambda: of_kernel(SDPBackend.CUDNN_ATTENTION, (BF16, HALF), masks=True)
PROGRAMS["attention: math"] = lambda: of_kernel(SDPBackend.MATH, (torch.float32, BF16), masks=True)


def chosen() -> Iterator[Part]:
    for dtype in (torch.float32, BF16, HALF):
        for shape in SHAPES:
            name = f"{'x'.join(map(str, shape))} {dtype}"
            yield there_and_back(name, lambda shape=shape, dtype=dtype: attend(shape, dtype))
            yield there_and_back(
                f"{name} causal", lambda shape=shape, dtype=dtype: attend(shape, dtype, is_causal=True)
            )
            yield there_and_back(
                f"{name} masked",
                lambda shape=shape, dtype=dtype: attend(
                    shape, dtype, attn_mask=torch.ones(shape[3], shape[4], dtype=torch.bool, device="cuda")
                ),
            )


PROGRAMS["attention: as torch chooses"] = chosen


def modules() -> Iterator[Part]:
    def layer(dtype: torch.dtype, **more: Any) -> nn.Module:
        return nn.TransformerEncoderLayer(128, 4, 256, batch_first=True, device="cuda", dtype=dtype, **more)

    def self_attention(dtype: torch.dtype, *, weights: bool) -> Any:
        module = nn.MultiheadAttention(128, 4, dropout=0.1, batch_first=True, device="cuda", dtype=dtype)
        tensor = x(8, 100, 128, dtype=dtype)
        return module(tensor, tensor, tensor, need_weights=weights)

    def padded(dtype: torch.dtype) -> None:
        module = layer(dtype).eval()
        ends = known(8, high=60)
        padding = torch.arange(100, device="cuda")[None] > 40 + ends[:, None]
        with torch.no_grad():
            module(x(8, 100, 128, dtype=dtype, grad=False), src_key_padding_mask=padding)

    for dtype in (torch.float32, BF16):
        for weights in (False, True):
            yield there_and_back(
                f"MultiheadAttention {dtype} weights={weights}",
                lambda dtype=dtype, weights=weights: self_attention(dtype, weights=weights),
            )
        for first in (False, True):
            yield there_and_back(
                f"encoder layer {dtype} norm_first={first}",
                lambda dtype=dtype, first=first: layer(dtype, norm_first=first)(x(8, 100, 128, dtype=dtype)),
            )
        yield f"fast path {dtype}", lambda dtype=dtype: padded(dtype)
        yield there_and_back(
            f"decoder layer {dtype}",
            lambda dtype=dtype: nn.TransformerDecoderLayer(128, 4, 256, batch_first=True, device="cuda", dtype=dtype)(
                x(8, 40, 128, dtype=dtype), x(8, 60, 128, dtype=dtype)
            ),
        )


PROGRAMS["attention: modules"] = modules
