"""The fast path of ``nn.TransformerEncoder`` and ``nn.MultiheadAttention``, which inference takes: one operator a layer
whose kernel calls others. Here those others are called, as ATen does in ``transformers/cuda/attention.cu`` and
``transformers/transformer.cpp``. Fakes need it beside a CUDA device too.

Whether a batch is left-aligned under its padding mask, so that torch would pack it into a nested tensor, only values
tell. It is taken as if it were not: what is padded counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from ....gpus import GPU
from .attention import Attention, choose
from .patches import Kernels, answer_fakes

aten = torch.ops.aten
_MASK_OF_ALL, _MASK_OF_KEYS = 0, 1  # types of masks: for each query and key, and for each key of each sample


def install(kernels: Kernels, stack: ExitStack, gpu: GPU) -> None:
    """Replace both operators, and say what fakes can't know of nested tensors."""
    attend = _attention_on(gpu)
    kernels.composite(aten._native_multi_head_attention.default, attend)
    kernels.composite(aten._transformer_encoder_layer_fwd.default, _layer_with(attend))
    answer_fakes(stack, aten._nested_tensor_from_mask_left_aligned.default, lambda *args, **kwargs: False)
    answer_fakes(stack, aten._nested_tensor_from_mask.default, _nested)


def _nested(mode: object, operator: Any, *args: object, **kwargs: object) -> None:
    raise DynamicOutputShapeException(operator)


def _attention_on(gpu: GPU) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        embed_dim: int,
        heads: int,
        qkv_weight: torch.Tensor,
        qkv_bias: torch.Tensor,
        proj_weight: torch.Tensor,
        proj_bias: torch.Tensor,
        mask: torch.Tensor | None = None,
        need_weights: bool = True,
        average_attn_weights: bool = True,
        mask_type: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if query is key and key is value and mask is None and not need_weights:
            parts = _split(query, heads)
            if choose(Attention(parts, parts, parts, None, 0.0, False, False), gpu) != "math":
                q, k, v = (_split(each, heads) for each in F.linear(query, qkv_weight, qkv_bias).chunk(3, -1))
                context = F.scaled_dot_product_attention(q, k, v)
                return F.linear(_merged(context), proj_weight, proj_bias), None
        q, k, _ = _projected(query, key, value, qkv_weight, heads)
        weights = torch.bmm(q, k.transpose(1, 2)).view(len(query), heads, query.shape[1], key.shape[1])
        if mask is not None:
            weights = _masked_softmax(weights, mask, mask_type)
        # Without a mask the softmax is written over its input; the product with the values is over the query.
        context = q.view(len(query), heads, *q.shape[1:])
        if not need_weights:
            del weights
            return _projected_back(context, proj_weight, proj_bias), None
        out = _projected_back(context, proj_weight, proj_bias)
        if average_attn_weights:
            weights = weights.sum(1)
            weights /= heads
        return out, weights

    return attend


def _split(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Heads as a dimension of their own, before that of the sequence."""
    return tensor.view(len(tensor), -1, heads, tensor.shape[2] // heads).transpose(1, 2)


def _merged(context: torch.Tensor) -> torch.Tensor:
    return context.transpose(1, 2).reshape(len(context), context.shape[2], -1)


def _projected_back(context: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    merged = _merged(context)
    return F.linear(merged.flatten(0, 1), weight, bias).view(*merged.shape[:2], -1)


def _projected(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, weight: torch.Tensor, heads: int
) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values of each head, in one piece of memory."""
    width = query.shape[2]
    if query is key and key is value:
        together = query @ weight.t()
    elif key is value:
        together = torch.cat([query @ weight[:width].t(), key @ weight[width:].t()], 2)
    else:
        parts = zip((query, key, value), weight.chunk(3), strict=True)
        together = torch.cat([tensor @ part.t() for tensor, part in parts], 2)
    each = together.new_empty(3, len(query) * heads, query.shape[1], width // heads)
    return each.unbind()


def _masked_softmax(scores: torch.Tensor, mask: torch.Tensor, mask_type: int | None) -> torch.Tensor:
    """As ``_masked_softmax`` on CUDA: rows that are long, and masks that are repeated, take the long way."""
    mask = mask.to(torch.bool)
    result = torch.empty_like(scores)
    length = scores.shape[-1]
    if mask_type == _MASK_OF_ALL:
        mask = mask.expand(scores.shape)
    if length > 1024 or length * scores.element_size() > 4096 or not mask.is_contiguous():
        if mask_type == _MASK_OF_KEYS:
            mask = mask.view(len(mask), 1, 1, length)
        torch.softmax(scores.masked_fill(mask, -math.inf), -1)
    return result


def _layer_with(attend: Callable[..., Any]) -> Callable[..., torch.Tensor]:
    def layer(
        source: torch.Tensor,
        embed_dim: int,
        heads: int,
        qkv_weight: torch.Tensor,
        qkv_bias: torch.Tensor,
        proj_weight: torch.Tensor,
        proj_bias: torch.Tensor,
        use_gelu: bool,
        norm_first: bool,
        eps: float,
        norm_weight_1: torch.Tensor,
        norm_bias_1: torch.Tensor,
        norm_weight_2: torch.Tensor,
        norm_bias_2: torch.Tensor,
        ffn_weight_1: torch.Tensor,
        ffn_bias_1: torch.Tensor,
        ffn_weight_2: torch.Tensor,
        ffn_bias_2: torch.Tensor,
        mask: torch.Tensor | None = None,
        mask_type: int | None = None,
    ) -> torch.Tensor:
        def first_norm(x: torch.Tensor) -> torch.Tensor:
            return F.layer_norm(x, (embed_dim,), norm_weight_1, norm_bias_1, eps)

        def second_norm(x: torch.Tensor) -> torch.Tensor:
            return F.layer_norm(x, (embed_dim,), norm_weight_2, norm_bias_2, eps)

        def feed_forward(x: torch.Tensor) -> torch.Tensor:
            inner = aten._addmm_activation(ffn_bias_1, x.flatten(0, 1), ffn_weight_1.t(), use_gelu=use_gelu)
            return F.linear(inner, ffn_weight_2, ffn_bias_2).view(x.shape)

        x = first_norm(source) if norm_first else source
        weights = qkv_weight, qkv_bias, proj_weight, proj_bias
        x = attend(x, x, x, embed_dim, heads, *weights, mask, False, True, mask_type)[0]
        x.add_(source)
        if not norm_first:
            x = first_norm(x)
        before = x
        if norm_first:
            x = second_norm(x)
        x = feed_forward(x)
        x.add_(before)
        return x if norm_first else second_norm(x)

    return layer
