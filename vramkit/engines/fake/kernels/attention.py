"""Attention's fused kernels: what they keep and need, in their order."""

from __future__ import annotations

import math

import torch

from ....gpus import GPU
from ....torch_internals.versions import SINCE_2_14
from .arithmetic import ceil_div, round_up
from .call import Call
from .copies import copies
from .registry import rule

aten = torch.ops.aten


@rule(aten._scaled_dot_product_flash_attention)
def flash_forward(call: Call, query: torch.Tensor, key: torch.Tensor, dropout_p: float) -> None:
    """Output and logsumexp, those of each part where a query's keys are split among blocks, seed and offset."""
    drops = dropout_p > 0
    batch, heads, length, width = query.shape
    if length == 1 and not drops:  # the heads that share a key become queries of one head
        length, heads = heads // key.shape[1], key.shape[1]
    blocks = batch * heads * ceil_div(length, 64)
    parts = 1 if drops else _parts(blocks, key.shape[2], width, call.gpu.multiprocessors)
    call.output(0)
    call.output(1)
    rows = 4 * parts * batch * heads * length
    with call.holding(*([rows, rows * _rounded(width)] if parts > 1 else [])):
        for index in range(2, len(call.result)):
            call.output(index)
        call.touch(*[16] * drops)


def _rounded(width: int) -> int:
    return round_up(width, 32) if width <= 192 else 256


def _parts(blocks: int, keys: int, width: int, multiprocessors: int) -> int:
    """Into how many parts the keys of a query are split, so that no multiprocessor is idle (``num_splits_heuristic``).

    Args:
        blocks: of threads, without a split.
        keys: how many.
        width: of a head.
        multiprocessors: of the card.
    """
    room = 2 * multiprocessors
    if blocks >= 0.8 * room:
        return 1
    tiles = ceil_div(keys, 256 if width <= 64 else 128 if width <= 128 else 64)
    efficiencies = {}
    for parts in range(1, min(128, room, tiles) + 1):
        if parts == 1 or ceil_div(tiles, parts) != ceil_div(tiles, parts - 1):
            waves = blocks * parts / room
            efficiencies[parts] = waves / math.ceil(waves)
    best = max(efficiencies.values(), default=0.0)
    return next((parts for parts, efficiency in efficiencies.items() if efficiency >= 0.85 * best), 1)


@rule(aten._scaled_dot_product_flash_attention_backward)
def flash_backward(
    call: Call, grad_out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, out: torch.Tensor
) -> None:
    """Copies, the gradients, row sums of output times gradient, the query's gradient in single precision.

    Where queries share keys, each has gradients of them first.
    """
    batch, heads, length, width = query.shape
    rows = batch * heads * round_up(length, 128)
    with call.holding(*copies(grad_out.transpose(1, 2), out.transpose(1, 2))):
        for index in range(3):
            call.output(index)
        own = batch * heads * key.shape[2] * width * key.element_size()
        with call.holding(4 * rows, 4 * rows * _rounded(width), *[own] * (2 * (heads != key.shape[1]))):
            pass


@rule(aten._scaled_dot_product_efficient_attention)
def efficient_forward(call: Call, dropout_p: float) -> None:
    """Seed and offset first, then output and logsumexp. Where the first two have values, they are on the host."""
    drops = dropout_p > 0
    for index in (2, 3):
        # Without dropout, seed and offset are two empty scalars on the device; before 2.14 they were on the host.
        call.output(index, 0 if drops or not SINCE_2_14 else None)
    call.output(0)
    call.output(1)
    out = call.result[0]
    if out.element_size() == 2 and out.shape[-1] > 128:
        call.touch(4 * out.numel())


@rule(aten._scaled_dot_product_efficient_attention_backward)
def efficient_backward(
    call: Call, grad_out_: torch.Tensor, query: torch.Tensor, key: torch.Tensor, out: torch.Tensor
) -> None:
    """The gradients, the row sums of output times gradient, and the kernel's workspace."""
    batch, heads, length, width = query.shape
    own = [call.take(size) for size in copies(grad_out_.transpose(1, 2))]
    for index in range(4):
        call.output(index)
    if heads != key.shape[1]:
        own += [call.take(batch * heads * key.shape[2] * width * key.element_size()) for _ in range(2)]
    sums = batch * heads * length * 4
    if query.dtype == torch.float32:
        product = call.take(out.nbytes)
        delta = call.take(sums)
        if heads > 1 and length > 1:  # they come out in another order than the kernel reads them in
            copy = call.take(sums)
            call.give(delta)
            delta = copy
        call.give(product)
    else:
        delta = call.take(sums)  # the kernel itself computes them
    workspace = call.take(batch * heads * _backward_workspace(length, key.shape[-2], width, query.dtype, call.gpu))
    call.give(delta, workspace, *own)


@rule(aten._safe_softmax)
def safe_softmax(call: Call) -> None:
    """The result; which values are masked, in which rows all are, and the zero that they get."""
    call.output()
    count, length = call.result.numel(), call.result.shape[-1] if call.result.dim() else 1
    call.touch_together(count, count // max(length, 1), call.result.element_size())


@rule(aten._scaled_dot_product_cudnn_attention)
def cudnn_forward(call: Call, query: torch.Tensor, compute_log_sumexp: bool) -> None:
    """Seed and offset, output and, where a backward needs it, logsumexp, the plan's workspace."""
    for index in (6, 7, 0):
        call.output(index)
    call.output(1, None if compute_log_sumexp else 0)
    call.touch(*[256] * (call.gpu.capability[0] == 9 and query.shape[2] > 1))


@rule(aten._scaled_dot_product_cudnn_attention_backward)
def cudnn_backward(call: Call, query: torch.Tensor, key: torch.Tensor) -> None:
    """The gradients, and the plan's workspace: the query's gradient in single precision, and sums of its rows.

    Where queries share keys, each has gradients of them first. Held against cuDNN 9.24 for capability 9.0.
    """
    for index in range(3):
        call.output(index)
    size, rows = 2 * query.nbytes, 4 * math.prod(query.shape[:3])
    if call.gpu.capability[0] == 9:
        apart = query.shape[1] * key.nbytes // key.shape[1]
        call.touch(size + rows + 256 + 2 * apart * (query.shape[1] != key.shape[1]))
    else:
        call.touch(2 * size + rows + 128)
        call.assume("cuDNN's workspaces of attention are estimated on this card", 2 * size + rows + 128)


@rule(aten._nested_tensor_from_mask_left_aligned)
def left_aligned(call: Call, mask: torch.Tensor) -> None:
    """The mask with a column more, as numbers, where its first zero is; running sums of it; whether they agree."""
    count, length = mask.shape
    joined = count * (length + 1)
    with call.holding(count):
        parts = call.take(joined), call.take(4 * joined)
        places = call.take(8 * count)
        call.give(*parts)
        with call.holding(8 * count * length):
            call.touch(8 * count * length)
            call.touch_together(count, 1)
        call.give(places)
    call.remark(
        "Only values tell whether a padding mask is left-aligned, so that nn.TransformerEncoder packs its batch into a "
        "nested tensor; it was taken not to, as with enable_nested_tensor=False."
    )


def _backward_workspace(length: int, keys: int, width: int, dtype: torch.dtype, gpu: GPU) -> int:
    """Bytes for one head: sums of the query's gradient in tiles, each with a header of 16 bytes.

    Kernels for wide heads in half precision sum the gradients of key and value too. Which kernel a card takes depends
    on its shared memory, of which those of data centers have more.
    """
    half, has_room = dtype != torch.float32, gpu.capability in ((8, 0), (9, 0), (10, 0))
    sums = half and width > 128
    rows, columns = 64, 64
    if half and not has_room and 96 < width <= 128 and gpu.capability[0] > 7:
        sums = True
    elif width > 64 and (half or has_room):
        rows, columns = (128, 128) if half and has_room and width <= 128 else (128, 64)
    tiles = ceil_div(length, rows) * ceil_div(width, columns) * (16 + 4 * rows * columns)
    return tiles + (2 * 4 * round_up(keys, 64) * round_up(width, 128) if sums else 0)
