"""CPU kernels for operators that only CUDA has, so that they can be computed on a virtual device.

Attention, cuDNN's batch norm and recurrent layers, fused cells, and the backward of the fused RMS norm. Each takes what
torch's operator of the same name takes; where a forward draws random numbers, its seed is where the CUDA kernel keeps
it (``philox_seed``, the reserve space), so that the backward draws the same. It knows no virtual device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.library import Library

from ...torch_internals.dispatch import has_kernel

_T = TypeVar("_T")
_library: Library | None = None
_MODES = ("rnn_relu", "rnn_tanh", "lstm", "gru")  # cuDNN's numbers
_GATES = (1, 1, 4, 3)


def register() -> None:
    """Make them known to torch's dispatcher, for CPU tensors, but for those that this torch lacks, or has itself."""
    global _library
    if _library is not None:
        return
    _library = Library("aten", "IMPL")  # type: ignore[no-untyped-call] # torch's
    for name, kernel in _KERNELS.items():
        if hasattr(torch.ops.aten, name):
            operator = getattr(torch.ops.aten, name).default
            if not has_kernel(operator.name(), "CPU"):
                _library.impl(operator, kernel, "CPU")  # type: ignore[no-untyped-call] # torch's


# -- attention ---------------------------------------------------------------------------------------------------------


def _new_seed(dropout: float) -> int:
    return int(torch.randint(1 << 62, ()).item()) if dropout else 0


def _kept(shape: Sequence[int], dropout: float, seed: int) -> Tensor | None:
    """What dropout multiplies with; None: nothing is dropped."""
    if not dropout:
        return None
    drawn = torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
    return (drawn >= dropout).float() / (1 - dropout)


def _scores(query: Tensor, key: Tensor, bias: Tensor | None, is_causal: bool, scale: float | None) -> Tensor:
    scores = (
        query.float() @ key.float().transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    )
    if is_causal:
        length, width = scores.shape[-2:]
        scores = scores.masked_fill(torch.ones(length, width, dtype=torch.bool).triu(1), -math.inf)
    return scores if bias is None else scores + bias.float()


def _heads(query: Tensor, tensor: Tensor) -> Tensor:
    """Keys or values of fewer heads, repeated for each query's."""
    times = query.shape[-3] // tensor.shape[-3]
    return tensor if times == 1 else tensor.repeat_interleave(times, -3)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float, is_causal: bool, scale: float | None
) -> tuple[Tensor, Tensor, int]:
    seed = _new_seed(dropout)
    scores = _scores(query, _heads(query, key), bias, is_causal, scale)
    chances = torch.softmax(scores, -1).nan_to_num(0.0)
    kept = _kept(chances.shape, dropout, seed)
    output = (chances if kept is None else chances * kept) @ _heads(query, value).float()
    return output.to(query.dtype), torch.logsumexp(scores, -1), seed


def _attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    dropout: float,
    is_causal: bool,
    scale: float | None,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    keys, values = _heads(query, key), _heads(query, value)
    chances = torch.softmax(_scores(query, keys, bias, is_causal, scale), -1).nan_to_num(0.0)
    kept = _kept(chances.shape, dropout, int(seed.flatten()[0].item()) if dropout else 0)
    dropped = chances if kept is None else chances * kept
    grad = grad.float()
    of_value = dropped.transpose(-2, -1) @ grad
    of_chances = grad @ values.float().transpose(-2, -1)
    if kept is not None:
        of_chances = of_chances * kept
    of_scores = chances * (of_chances - (of_chances * chances).sum(-1, keepdim=True))
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    of_query = of_scores @ keys.float() * factor
    of_key = of_scores.transpose(-2, -1) @ query.float() * factor
    of_bias = of_scores if bias is None else of_scores.sum_to_size(bias.shape).to(bias.dtype)
    return (
        of_query.to(query.dtype),
        _sum_heads(of_key, key),
        _sum_heads(of_value, value),
        of_bias,
    )


def _sum_heads(grad: Tensor, like: Tensor) -> Tensor:
    times = grad.shape[-3] // like.shape[-3]
    if times > 1:
        grad = grad.view(*grad.shape[:-3], like.shape[-3], times, *grad.shape[-2:]).sum(-3)
    return grad.to(like.dtype)


def _nothing(dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.empty(0, dtype=dtype)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, is_causal: bool = False,
    return_debug_mask: bool = False, *, scale: float | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    output, logsumexp, seed = _attend(query, key, value, None, dropout_p, is_causal, scale)
    state = torch.tensor([seed, 0], dtype=torch.uint64)
    lengths = query.shape[-2], key.shape[-2]
    return output, logsumexp, _nothing(), _nothing(), *lengths, state, _nothing(torch.uint64), _nothing(query.dtype)


def _flash_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor, cum_seq_q: Tensor,
    cum_seq_k: Tensor, max_q: int, max_k: int, dropout_p: float, is_causal: bool, philox_seed: Tensor,
    philox_offset: Tensor, *, scale: float | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    seed = philox_seed.view(torch.int64)
    return _attend_backward(grad_out, query, key, value, None, dropout_p, is_causal, scale, seed)[:3]


def _efficient(
    query: Tensor, key: Tensor, value: Tensor, attn_bias: Tensor | None, compute_log_sumexp: bool,
    dropout_p: float = 0.0, is_causal: bool = False, *, scale: float | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    output, logsumexp, seed = _attend(query, key, value, attn_bias, dropout_p, is_causal, scale)
    rows = math.ceil(logsumexp.shape[-1] / 32) * 32  # the kernel's rows are whole tiles
    padded = torch.full((*logsumexp.shape[:-1], rows), math.inf)
    padded[..., : logsumexp.shape[-1]] = logsumexp
    return output, padded if compute_log_sumexp else padded[..., :0], torch.tensor(seed), torch.tensor(0)


def _efficient_backward(
    grad_out_: Tensor, query: Tensor, key: Tensor, value: Tensor, attn_bias: Tensor | None, out: Tensor,
    logsumexp: Tensor, philox_seed: Tensor, philox_offset: Tensor, dropout_p: float, grad_input_mask: Sequence[bool],
    is_causal: bool = False, *, scale: float | None = None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    bias = attn_bias if attn_bias is not None and attn_bias.numel() else None
    grads = _attend_backward(grad_out_, query, key, value, bias, dropout_p, is_causal, scale, philox_seed)
    wanted = (*grad_input_mask[:3], grad_input_mask[3] and bias is not None)
    return tuple(grad if is_wanted else None for grad, is_wanted in zip(grads, wanted, strict=True))


def _cudnn(
    query: Tensor, key: Tensor, value: Tensor, attn_bias: Tensor | None, compute_log_sumexp: bool,
    dropout_p: float = 0.0, is_causal: bool = False, return_debug_mask: bool = False, *, scale: float | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    output, logsumexp, seed = _attend(query, key, value, attn_bias, dropout_p, is_causal, scale)
    lengths = query.shape[-2], key.shape[-2]
    kept = torch.tensor(seed), torch.tensor(0)
    return output, logsumexp.unsqueeze(-1), _nothing(), _nothing(), *lengths, *kept, _nothing(query.dtype)


def _cudnn_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor, philox_seed: Tensor,
    philox_offset: Tensor, attn_bias: Tensor | None, cum_seq_q: Tensor, cum_seq_k: Tensor, max_q: int, max_k: int,
    dropout_p: float, is_causal: bool, *, scale: float | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    bias = attn_bias if attn_bias is not None and attn_bias.numel() else None
    return _attend_backward(grad_out, query, key, value, bias, dropout_p, is_causal, scale, philox_seed)[:3]


# -- normalization -----------------------------------------------------------------------------------------------------


def _batch_norm(
    input: Tensor, weight: Tensor, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    training: bool, exponential_average_factor: float, epsilon: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    output, mean, inverse = torch.native_batch_norm(
        input.float(), weight, bias, running_mean, running_var, training, exponential_average_factor, epsilon
    )
    return output.to(input.dtype), mean, inverse, _nothing(torch.uint8)


def _batch_norm_backward(
    input: Tensor, grad_output: Tensor, weight: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
    save_mean: Tensor | None, save_var: Tensor | None, epsilon: float, reserve: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    grads = torch.ops.aten.native_batch_norm_backward(
        grad_output.float(), input.float(), weight, running_mean, running_var, save_mean, save_var, True, epsilon,
        [True] * 3,
    )  # fmt: skip
    return grads[0].to(input.dtype), grads[1], grads[2]


def _rms_norm_backward(
    grad_out: Tensor, input: Tensor, normalized_shape: Sequence[int], rstd: Tensor, weight: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    dims = list(range(-len(normalized_shape), 0))
    normal = input.float() * rstd
    grad = grad_out.float() if weight is None else grad_out.float() * weight.float()
    of_input = (grad - normal * (grad * normal).mean(dims, keepdim=True)) * rstd
    of_weight = None
    if output_mask[1] and weight is not None:
        of_weight = (grad_out.float() * normal).sum_to_size(weight.shape).to(weight.dtype)
    return of_input.to(input.dtype), of_weight


# -- recurrent layers --------------------------------------------------------------------------------------------------

# The caller's thread is below autograd, where no graph can be made; one of our own is not.
_thread = ThreadPoolExecutor(1, thread_name_prefix="vramkit-values")


def _above_autograd(function: Callable[[], _T]) -> _T:
    with_grad = torch.enable_grad()(function)
    return _thread.submit(with_grad).result()


def _shaped(weight: Sequence[Tensor], stride: int, rows: int, proj_size: int) -> list[Tensor]:
    """Weights as layers want them: under autocast they come as stretches of cuDNN's buffer, of other shapes."""
    matrices = {0: rows, 1: rows, (stride - 1 if proj_size else -1): proj_size}
    return [
        each.reshape(matrices.get(i % stride, each.numel()), -1).float()
        if i % stride in matrices
        else each.reshape(-1).float()
        for i, each in enumerate(weight)
    ]


def _run_layers(
    input: Tensor, weight: Sequence[Tensor], stride: int, hx: Tensor, cx: Tensor | None, mode: int, num_layers: int,
    batch_first: bool, dropout: float, train: bool, bidirectional: bool, batch_sizes: Sequence[int], seed: int,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    state: Any = hx if cx is None else (hx, cx)
    layers = getattr(torch, _MODES[mode])
    torch.manual_seed(seed)
    how = (list(weight), stride >= 4, num_layers, dropout, train, bidirectional)
    if batch_sizes:
        found = layers(input, torch.tensor(batch_sizes), state, *how)
    else:
        found = layers(input, state, *how, batch_first)
    return found if cx is not None else (*found, None)


def _rnn(
    input: Tensor, weight: Sequence[Tensor], weight_stride0: int, weight_buf: Tensor | None, hx: Tensor,
    cx: Tensor | None, mode: int, hidden_size: int, proj_size: int, num_layers: int, batch_first: bool, dropout: float,
    train: bool, bidirectional: bool, batch_sizes: Sequence[int], dropout_state: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    seed = _new_seed(dropout if train else 0.0)
    how = (mode, num_layers, batch_first, dropout, train, bidirectional, batch_sizes, seed)
    own, state, cell = input.float(), hx.float(), None if cx is None else cx.float()
    wide = _shaped(weight, weight_stride0, _GATES[mode] * hidden_size, proj_size)
    found = _layers_apart(lambda: _run_layers(own, wide, weight_stride0, state, cell, *how))
    output, hy, cy = (_nothing() if each is None else each.to(input.dtype) for each in found)
    return output, hy, cy, torch.tensor([seed]).view(torch.uint8), _nothing(input.dtype)


def _layers_apart(run: Callable[[], _T]) -> _T:
    """Run layers in a thread above autograd; the default generator is left as it was."""

    def inner() -> _T:
        before = torch.get_rng_state()
        try:
            return run()
        finally:
            torch.set_rng_state(before)

    return _above_autograd(inner)


def _rnn_backward(
    input: Tensor, weight: Sequence[Tensor], weight_stride0: int, weight_buf: Tensor, hx: Tensor, cx: Tensor | None,
    output: Tensor, grad_output: Tensor | None, grad_hy: Tensor | None, grad_cy: Tensor | None, mode: int,
    hidden_size: int, proj_size: int, num_layers: int, batch_first: bool, dropout: float, train: bool,
    bidirectional: bool, batch_sizes: Sequence[int], dropout_state: Tensor | None, reserve: Tensor,
    output_mask: Sequence[bool],
) -> tuple[Any, ...]:  # fmt: skip
    seed = int(reserve[:8].view(torch.int64).item()) if dropout and reserve.numel() >= 8 else 0
    how = (mode, num_layers, batch_first, dropout, train, bidirectional, batch_sizes, seed)

    def run() -> tuple[Any, ...]:
        wide = _shaped(weight, weight_stride0, _GATES[mode] * hidden_size, proj_size)
        own = [tensor.detach().float().clone().requires_grad_() for tensor in (input, hx, *wide)]
        cell = None if cx is None else cx.detach().float().clone().requires_grad_()
        found = _run_layers(own[0], own[2:], weight_stride0, own[1], cell, *how)
        given = zip(found, (grad_output, grad_hy, grad_cy), strict=True)
        pairs = [(result, grad.float()) for result, grad in given if result is not None and grad is not None]
        leaves = own if cell is None else [*own, cell]
        results, theirs = zip(*pairs, strict=True)
        grads = torch.autograd.grad(results, leaves, theirs, allow_unused=True)
        filled = [
            (torch.zeros_like(leaf) if grad is None else grad).to(input.dtype)
            for leaf, grad in zip(leaves, grads, strict=True)
        ]
        of_cell = _nothing(input.dtype) if cell is None else filled[-1]
        of_weights = [grad.reshape(each.shape) for grad, each in zip(filled[2:], weight, strict=False)]
        return filled[0], filled[1], of_cell, of_weights

    return _layers_apart(run)


def _lstm_gates(gates: Tensor) -> tuple[Tensor, ...]:
    i, f, g, o = gates.float().chunk(4, 1)
    return i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()


def _lstm_cell(
    input_gates: Tensor, hidden_gates: Tensor, cx: Tensor, input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    gates = input_gates + hidden_gates
    for bias in (input_bias, hidden_bias):
        gates = gates if bias is None else gates + bias
    i, f, g, o = _lstm_gates(gates)
    cy = f * cx + i * g
    workspace = torch.cat([i, f, g, o], 1).to(gates.dtype)
    return (o * cy.tanh()).to(gates.dtype), cy.to(cx.dtype), workspace


def _lstm_cell_backward(
    grad_hy: Tensor | None, grad_cy: Tensor | None, cx: Tensor, cy: Tensor, workspace: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    i, f, g, o = workspace.float().chunk(4, 1)
    tanh = cy.float().tanh()
    of_hy = torch.zeros_like(tanh) if grad_hy is None else grad_hy.float()
    of_cy = of_hy * o * (1 - tanh**2) + (0 if grad_cy is None else grad_cy.float())
    gates = torch.cat(
        [of_cy * g * i * (1 - i), of_cy * cx * f * (1 - f), of_cy * i * (1 - g**2), of_hy * tanh * o * (1 - o)], 1
    ).to(workspace.dtype)
    return gates, (of_cy * f).to(cx.dtype), gates.sum(0) if has_bias else _nothing(workspace.dtype)


def _gru_cell(
    input_gates: Tensor, hidden_gates: Tensor, hx: Tensor, input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    own = input_gates if input_bias is None else input_gates + input_bias
    hidden = hidden_gates if hidden_bias is None else hidden_gates + hidden_bias
    (ir, iz, in_), (hr, hz, hn) = own.float().chunk(3, 1), hidden.float().chunk(3, 1)
    r, z = (ir + hr).sigmoid(), (iz + hz).sigmoid()
    n = (in_ + r * hn).tanh()
    workspace = torch.cat([r, z, n, hx.float(), hn], 1).to(hx.dtype)
    return (n + z * (hx - n)).to(hx.dtype), workspace


def _gru_cell_backward(grad_hy: Tensor, workspace: Tensor, has_bias: bool) -> tuple[Tensor, ...]:
    r, z, n, hx, hn = workspace.float().chunk(5, 1)
    grad = grad_hy.float()
    of_n = grad * (1 - z) * (1 - n**2)
    of_z = grad * (hx - n) * z * (1 - z)
    of_r = of_n * hn * r * (1 - r)
    own = torch.cat([of_r, of_z, of_n], 1).to(workspace.dtype)
    hidden = torch.cat([of_r, of_z, of_n * r], 1).to(workspace.dtype)
    sums = (own.sum(0), hidden.sum(0)) if has_bias else (_nothing(workspace.dtype),) * 2
    return own, hidden, (grad * z).to(workspace.dtype), *sums


_KERNELS: dict[str, Callable[..., Any]] = {
    "_scaled_dot_product_flash_attention": _flash,
    "_scaled_dot_product_flash_attention_backward": _flash_backward,
    "_scaled_dot_product_efficient_attention": _efficient,
    "_scaled_dot_product_efficient_attention_backward": _efficient_backward,
    "_scaled_dot_product_cudnn_attention": _cudnn,
    "_scaled_dot_product_cudnn_attention_backward": _cudnn_backward,
    "cudnn_batch_norm": _batch_norm,
    "cudnn_batch_norm_backward": _batch_norm_backward,
    "_fused_rms_norm_backward": _rms_norm_backward,
    "_cudnn_rnn": _rnn,
    "_cudnn_rnn_backward": _rnn_backward,
    "_thnn_fused_lstm_cell": _lstm_cell,
    "_thnn_fused_lstm_cell_backward_impl": _lstm_cell_backward,
    "_thnn_fused_gru_cell": _gru_cell,
    "_thnn_fused_gru_cell_backward": _gru_cell_backward,
}
