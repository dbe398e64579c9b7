"""Attention's fused kernels: what they keep and need, in their order."""

from __future__ import annotations

import torch

from ..calls import Call
from .table import rule

aten = torch.ops.aten
_HAS_EMPTY_SEEDS = torch.__version__ >= "2.14"
"""Without dropout, seed and offset are two empty scalars on the device; before, they were on the host then, too."""


def _up(number: int, divisor: int) -> int:
    return -(-number // divisor)


@rule(aten._scaled_dot_product_efficient_attention)
def efficient_forward(call: Call) -> None:
    """Seed and offset first, then output and logsumexp. Where the first two have values, they are on the host."""
    drops = call.argument(5, "dropout_p", 0.0) > 0
    for index in (2, 3):
        call.output(index, 0 if drops or not _HAS_EMPTY_SEEDS else None)
    call.output(0)
    call.output(1)


@rule(aten._scaled_dot_product_flash_attention_backward)
def flash_backward(call: Call) -> None:
    """The gradients, the row sums of output times gradient, and the query's gradient in single precision."""
    query = call.args[1]
    batch, heads, length, width = query.shape
    for index in range(3):
        call.output(index)
    rows = batch * heads * _up(length, 128) * 128
    with call.holding(4 * rows, 4 * rows * (_up(width, 32) * 32 if width <= 192 else 256)):
        pass


@rule(aten._scaled_dot_product_efficient_attention_backward)
def efficient_backward(call: Call) -> None:
    """The gradients, the row sums of output times gradient, and the kernel's workspace."""
    gradient, query, key, out = call.args[0], call.args[1], call.args[2], call.args[5]
    batch, heads, length, width = query.shape
    own = None
    if not gradient.transpose(1, 2).is_contiguous():
        own = call.take(gradient.numel() * gradient.element_size())
    for index in range(4):
        call.output(index)
    sums = batch * heads * length * 4
    if query.dtype == torch.float32:
        product = call.take(out.numel() * 4)
        delta = call.take(sums)
        if heads > 1 and length > 1:  # they come out in another order than the kernel reads them in
            copy = call.take(sums)
            call.give(delta)
            delta = copy
        call.give(product)
    else:
        delta = call.take(sums)  # the kernel itself computes them
    workspace = call.take(batch * heads * _backward_workspace(length, key.shape[-2], width, query.dtype))
    call.give(delta, workspace, own)


def _backward_workspace(length: int, keys: int, width: int, dtype: torch.dtype) -> int:
    """Bytes for one head: sums of the query's gradient in tiles, each with a header of 16 bytes.

    Kernels for wide heads in half precision sum the gradients of key and value too. Tiles are those of capability 8.0
    and above; older cards use smaller ones.
    """
    half = dtype != torch.float32
    rows, columns = (64, 64) if width <= 64 else (128, 128) if half and width <= 128 else (128, 64)
    tiles = _up(length, rows) * _up(width, columns) * (16 + 4 * rows * columns)
    return tiles + (2 * 4 * _up(keys, 64) * 64 * _up(width, 128) * 128 if half and width > 128 else 0)
