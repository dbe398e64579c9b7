"""Recurrent layers as cuDNN runs them: flat weights, one operator for all layers and steps. Knows its arguments and
shapes; what it keeps, and what its kernels take for their own work, others know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import import_module
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ....gpus import GPU
from ..kernels.cudnn_sizes import recurrent
from .patches import Kernels, answer_fakes, has_fakes, put

aten = torch.ops.aten

_MODES = {"RNN_RELU": 0, "RNN_TANH": 1, "LSTM": 2, "GRU": 3}
_STATE_OF_A_THREAD = 24
"""Bytes of cuDNN's random state for each thread of a card: an assumption, the virtual GPU's."""


def install(kernels: Kernels, stack: ExitStack, gpu: GPU) -> None:
    """Replace what decides about recurrent layers, and how fakes of cuDNN's operators are made."""
    layers = _Layers(gpu)
    stack.callback(setattr, layers, "_states", None)  # torch keeps kernels that were replaced
    for name, packet in (
        ("RNN_RELU", aten.rnn_relu),
        ("RNN_TANH", aten.rnn_tanh),
        ("LSTM", aten.lstm),
        ("GRU", aten.gru),
    ):
        kernels.composite(packet.input, layers.padded(_MODES[name]))
        kernels.composite(packet.data, layers.packed(_MODES[name]))
    kernels.composite(aten.lstm_cell.default, _lstm_cell)
    kernels.composite(aten.gru_cell.default, _gru_cell)
    kernels.autocast(aten._cudnn_rnn.default, _cast_all)
    put(stack, torch.backends.cudnn, "is_acceptable", _is_acceptable)
    put(stack, import_module("torch.backends.cudnn.rnn"), "get_cudnn_mode", _MODES.__getitem__)
    put(stack, torch, "_use_cudnn_rnn_flatten_weight", lambda: True)
    put(stack, torch, "_cudnn_rnn_flatten_weight", _for_fakes(_flatten, torch._cudnn_rnn_flatten_weight))
    put(stack, torch._VF, "_pack_padded_sequence", _for_fakes(_pack, torch._VF._pack_padded_sequence))
    answer_fakes(stack, aten._cudnn_rnn.default, _forward)
    answer_fakes(stack, aten._cudnn_rnn_backward.default, _backward)
    answer_fakes(stack, aten._thnn_fused_gru_cell.default, _gru_forward)
    answer_fakes(stack, aten._thnn_fused_gru_cell_backward.default, _gru_backward)


def _for_fakes(function: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    """A function for fakes, and torch's own for others."""
    return lambda *args: (function if has_fakes(args) else own)(*args)


def _is_acceptable(tensor: torch.Tensor) -> bool:
    if not torch.backends.cudnn.enabled or tensor.device.type != "cuda":
        return False
    return tensor.dtype in torch.backends.cudnn.CUDNN_TENSOR_DTYPES  # not bfloat16: its weights are made flat each time


# -- layers ------------------------------------------------------------------------------------------------------------


class _Layers:
    """The layers as calls of cuDNN's operator.

    Args:
        gpu: the card.
    """

    def __init__(self, gpu: GPU) -> None:
        self._states_size = gpu.multiprocessors * gpu.threads_per_multiprocessor * _STATE_OF_A_THREAD
        self._states: torch.Tensor | None = None  # of random numbers for dropout: the process's, once it has them

    def padded(self, mode: int) -> Callable[..., Any]:
        """The layer for sequences of one length."""

        def run(
            data: torch.Tensor, hx: Any, params: Sequence[torch.Tensor], has_biases: bool, num_layers: int,
            dropout: float, train: bool, bidirectional: bool, batch_first: bool,
        ) -> Any:  # fmt: skip
            return self._run(
                mode, data, [], hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first
            )

        return run

    def packed(self, mode: int) -> Callable[..., Any]:
        """The layer for packed sequences."""

        def run(
            data: torch.Tensor, batch_sizes: torch.Tensor, hx: Any, params: Sequence[torch.Tensor], has_biases: bool,
            num_layers: int, dropout: float, train: bool, bidirectional: bool,
        ) -> Any:  # fmt: skip
            sizes = batch_sizes.tolist()
            return self._run(
                mode, data, sizes, hx, params, has_biases, num_layers, dropout, train, bidirectional, False
            )

        return run

    def _run(
        self, mode: int, data: torch.Tensor, batch_sizes: list[int], hx: Any, params: Sequence[torch.Tensor],
        has_biases: bool, num_layers: int, dropout: float, train: bool, bidirectional: bool, batch_first: bool,
    ) -> Any:  # fmt: skip
        h, c = hx if mode == _MODES["LSTM"] else (hx, None)
        hidden, projection = h.shape[2], 0
        if c is not None and c.shape[2] != hidden:
            hidden, projection = c.shape[2], hidden
        stride = (4 if has_biases else 2) + bool(projection)
        flat = _flat_weights(params, _flat_size(params, stride))
        states = self._dropout_states(data) if dropout and train else None
        out, h, c, _, _ = aten._cudnn_rnn(
            data, params, stride, flat, h, c, mode, hidden, projection, num_layers, batch_first, dropout, train,
            bidirectional, batch_sizes, states,
        )  # fmt: skip
        return (out, h, c) if mode == _MODES["LSTM"] else (out, h)

    def _dropout_states(self, data: torch.Tensor) -> torch.Tensor:
        if self._states is None:
            torch.empty((), dtype=torch.long, device=data.device).random_()  # their seed
            self._states = torch.empty(self._states_size, dtype=torch.uint8, device=data.device)
        return self._states


def _lstm_cell(
    data: torch.Tensor, hx: Sequence[torch.Tensor], w_ih: torch.Tensor, w_hh: torch.Tensor,
    b_ih: torch.Tensor | None = None, b_hh: torch.Tensor | None = None,
) -> Any:  # fmt: skip
    return aten._thnn_fused_lstm_cell(data @ w_ih.t(), hx[0] @ w_hh.t(), hx[1], b_ih, b_hh)[:2]


def _gru_cell(
    data: torch.Tensor, hx: torch.Tensor, w_ih: torch.Tensor, w_hh: torch.Tensor,
    b_ih: torch.Tensor | None = None, b_hh: torch.Tensor | None = None,
) -> Any:  # fmt: skip
    return aten._thnn_fused_gru_cell(data @ w_ih.t(), hx @ w_hh.t(), hx, b_ih, b_hh)[0]


class _Pack(torch.autograd.Function):
    """What packs sequences, whose lengths are known on the host: steps that have the same sequences are copied, then
    all are joined.
    """

    @staticmethod
    def forward(ctx: Any, data: torch.Tensor, lengths: list[int], batch_first: bool) -> torch.Tensor:
        ctx.shape, ctx.lengths, ctx.batch_first = data.shape, lengths, batch_first
        steps = data.transpose(0, 1) if batch_first else data
        copies, before = [], 0
        for count, length in zip(range(len(lengths), 0, -1), reversed(lengths), strict=True):
            if length > before:
                part = steps[before:length, :count].contiguous()
                copies.append(part.view(-1, *part.shape[2:]))
                before = length
        return torch.cat(copies)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        batch, steps, *more = ctx.shape
        if not ctx.batch_first:
            return gradient.new_zeros(ctx.shape), None, None
        return gradient.new_zeros((steps, batch, *more)).transpose(0, 1), None, None


def _pack(data: torch.Tensor, lengths: torch.Tensor, batch_first: bool) -> tuple[torch.Tensor, torch.Tensor]:
    known = lengths.tolist()
    sizes = [sum(length > step for length in known) for step in range(known[0])]
    return _Pack.apply(data, known, batch_first), torch.tensor(sizes)


def _flat_size(weights: Sequence[torch.Tensor], stride: int) -> int:
    """Elements of weights as one tensor. There is room for biases, also where a layer has none."""
    size = sum(each.numel() for each in weights)
    if stride < 4:
        # The first matrix of each layer and direction has a row for every gate, as a bias has an element.
        size += sum(2 * each.shape[0] for each in weights[::stride])
    return size


def _flat_weights(weights: Sequence[torch.Tensor], size: int) -> torch.Tensor | None:
    """The weights as one tensor, where they are views of one that holds nothing else."""
    first = weights[0]
    storage = first.untyped_storage()
    if any(each.untyped_storage()._cdata != storage._cdata for each in weights):
        return None
    return _part(storage, first, 0, (size,)) if storage.nbytes() == size * first.element_size() else None


def _part(storage: torch.UntypedStorage, like: torch.Tensor, offset: int, shape: tuple[int, ...]) -> torch.Tensor:
    """A part of a storage, which autograd does not take for a view."""
    part = torch.empty(0, dtype=like.dtype, device=like.device)
    return part.set_(storage, offset, shape)  # type: ignore[call-overload, no-any-return] # not in its stub


def _parts(flat: torch.Tensor, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Parts of a flat tensor as large as weights are. cuDNN's order is another one, and of no consequence here."""
    parts, offset = [], 0
    for weight in weights:
        parts.append(_part(flat.untyped_storage(), flat, offset, (weight.numel(), 1)))
        offset += weight.numel()
    return parts


def _flatten(weights: Sequence[torch.Tensor], stride: int, input_size: int, kind: int, *_sizes: Any) -> torch.Tensor:
    """``_cudnn_rnn_flatten_weight``: let weights be parts of one tensor."""
    size = _flat_size(weights, stride)
    flat = torch.zeros(size, dtype=weights[0].dtype, device=weights[0].device)
    for weight, part in zip(weights, _parts(flat, weights), strict=True):
        weight.set_(part.view(weight.shape))  # type: ignore[call-overload] # not in its stub
    return flat


def _cast_all(
    data: torch.Tensor, weights: Sequence[torch.Tensor], stride: int, weight_buf: torch.Tensor | None, hx: torch.Tensor,
    cx: torch.Tensor | None, *more: Any,
) -> Any:  # fmt: skip
    """``_cudnn_rnn`` under autocast: the weights are cast into a flat tensor of their own."""
    dtype = torch.get_autocast_dtype("cuda")
    with torch._C._DisableAutocast():
        if weights[0].dtype is not dtype:
            weight_buf = torch.zeros(_flat_size(weights, stride), dtype=dtype, device=data.device)
            parts = _parts(weight_buf, weights)
            weights = [part.copy_(weight.view(-1, 1)) for part, weight in zip(parts, weights, strict=True)]
        cx, hx, data = (None if each is None else each.to(dtype) for each in (cx, hx, data))  # type: ignore[assignment] # as they came
        return aten._cudnn_rnn(data, weights, stride, weight_buf, hx, cx, *more)


# -- fakes -------------------------------------------------------------------------------------------------------------


def _forward(
    mode: FakeTensorMode, func: Any, data: torch.Tensor, weight: Sequence[torch.Tensor], weight_stride0: int,
    weight_buf: torch.Tensor | None, hx: torch.Tensor, cx: torch.Tensor | None, kind: int, hidden: int, projection: int,
    num_layers: int, batch_first: bool, dropout: float, train: bool, bidirectional: bool, batch_sizes: Sequence[int],
    dropout_state: Any,
) -> Any:  # fmt: skip
    directions = 2 if bidirectional else 1
    width = (projection or hidden) * directions
    with mode:
        if batch_sizes:
            steps, batch = len(batch_sizes), batch_sizes[0]
            output = data.new_empty((len(data), width))
        else:
            batch, steps = data.shape[:2] if batch_first else (data.shape[1], data.shape[0])
            output = data.new_empty((steps, batch, width))
            output = output.transpose(0, 1) if batch_first else output
        h = hx.new_empty((num_layers * directions, batch, projection or hidden))
        c = hx.new_empty((num_layers * directions, batch, hidden) if cx is not None else (0,))
        network = recurrent(
            data.shape, data.element_size(), mode=kind, hidden=hidden, projection=projection, layers=num_layers,
            batch_first=batch_first, dropout=dropout, bidirectional=bidirectional, batch_sizes=batch_sizes,
        )  # fmt: skip
        kept = data.new_empty((network.reserve if train else 0,), dtype=torch.uint8)
        if weight_buf is None:
            weight_buf = data.new_empty((_flat_size(weight, weight_stride0),), dtype=weight[0].dtype)
    return output, h, c, kept, weight_buf


def _backward(
    mode: FakeTensorMode, func: Any, data: torch.Tensor, weight: Sequence[torch.Tensor], weight_stride0: int,
    weight_buf: torch.Tensor, hx: torch.Tensor, cx: torch.Tensor | None, output: torch.Tensor, *more: Any,
) -> Any:  # fmt: skip
    batch_first, mask = more[7], more[-1]
    batch_sizes = more[11]
    with mode:
        if batch_first and not batch_sizes:
            of_data = torch.empty_like(data.transpose(0, 1).contiguous()).transpose(0, 1)
        else:
            of_data = torch.empty_like(data, memory_format=torch.contiguous_format)
        of_h = torch.empty_like(hx, memory_format=torch.contiguous_format)
        of_c = None if cx is None else torch.empty_like(cx, memory_format=torch.contiguous_format)
        of_weights: list[torch.Tensor] = []
        if mask[3] and weight_stride0 < 4:  # without biases: cut out of what has them
            of_weights = [torch.empty_like(each, memory_format=torch.contiguous_format) for each in weight]
        elif mask[3]:
            parts = _parts(torch.zeros_like(weight_buf), weight)
            of_weights = [part.view(each.shape) for part, each in zip(parts, weight, strict=True)]
    return of_data, of_h, of_c, of_weights


def _gru_forward(
    mode: FakeTensorMode, func: Any, of_data: torch.Tensor, of_state: torch.Tensor, hx: torch.Tensor, *_biases: Any
) -> Any:
    with mode:
        return torch.empty_like(hx, memory_format=torch.contiguous_format), hx.new_empty((len(hx), 5 * hx.shape[1]))


def _gru_backward(
    mode: FakeTensorMode, func: Any, gradient: torch.Tensor, workspace: torch.Tensor, has_bias: bool
) -> Any:
    batch, hidden = gradient.shape
    with mode:
        gates = [workspace.new_empty((batch, 3 * hidden)) for _ in range(2)]
        of_h = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        return *gates, of_h, *[gate.sum(0) if has_bias else None for gate in gates]
