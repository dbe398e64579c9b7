"""cuDNN's recurrent layers: copies with the time first, and the library's workspace."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .call import Call
from .registry import rule

aten = torch.ops.aten
_GATES = {0: 1, 1: 1, 2: 4, 3: 3}  # by cuDNN's mode: RNN with ReLU, with tanh, LSTM, GRU


def _workspace(
    call: Call, input: torch.Tensor, mode: int, hidden_size: int, bidirectional: bool, batch_sizes: Sequence[int]
) -> int:
    """Bytes that a pass takes for its own work: an assumption, the virtual GPU's.

    Args:
        call: of the forward or the backward.
        input: of the layer.
        mode: which kind of layer it is, in cuDNN's numbers.
        hidden_size: numbers of a state.
        bidirectional: it goes through the sequences in both directions.
        batch_sizes: sequences in each step, where they are packed.
    """
    directions = 2 if bidirectional else 1
    # cuDNN counts as if all sequences were as long as the longest.
    rows = len(batch_sizes) * batch_sizes[0] if batch_sizes else math.prod(input.shape[:-1])
    size = rows * hidden_size * directions * input.element_size() * _GATES[mode]
    call.assume("cuDNN's workspaces of recurrent layers are assumed", size)
    return size


def _time_first(tensor: torch.Tensor, *, batch_first: bool) -> list[int]:
    """Bytes of the copy that the kernel makes of a tensor unless its time comes first."""
    ready = (tensor.transpose(0, 1) if batch_first else tensor).is_contiguous()
    return [] if ready else [tensor.nbytes]


@rule(aten._cudnn_rnn)
def forward(
    call: Call,
    input: torch.Tensor,
    mode: int,
    hidden_size: int,
    batch_first: bool,
    bidirectional: bool,
    batch_sizes: Sequence[int],
) -> None:
    """The weights in one piece unless they are so already, a copy of the input, results, workspace, the reserve."""
    call.output(4)
    with call.holding(*_time_first(input, batch_first=batch_first and not batch_sizes)):
        for index in range(3):
            call.output(index)
        with call.holding(_workspace(call, input, mode, hidden_size, bidirectional, batch_sizes)):
            call.output(3)


@rule(aten._cudnn_rnn_backward)
def backward(
    call: Call,
    input: torch.Tensor,
    hx: torch.Tensor,
    cx: torch.Tensor | None,
    output: torch.Tensor,
    grad_output: torch.Tensor | None,
    grad_hy: torch.Tensor | None,
    grad_cy: torch.Tensor | None,
    mode: int,
    hidden_size: int,
    batch_first: bool,
    bidirectional: bool,
    batch_sizes: Sequence[int],
    output_mask: Sequence[bool],
) -> None:
    """Gradients that nobody gave, then those of the input and the states, then those of the weights."""
    batch_first = batch_first and not batch_sizes
    pairs = (output, grad_output), (hx, grad_hy), (cx, grad_cy)
    missing = [tensor.nbytes for tensor, gradient in pairs if tensor is not None and gradient is None]
    workspace = _workspace(call, input, mode, hidden_size, bidirectional, batch_sizes)
    copy = _time_first(input, batch_first=batch_first)
    copies = [*copy, *(() if grad_output is None else _time_first(grad_output, batch_first=batch_first))]
    copies += _time_first(output, batch_first=batch_first)
    with call.holding(*missing):
        with call.holding(*copies):
            for index in range(3):
                call.output(index)
            call.touch(workspace)
        if output_mask[3]:
            with call.holding(*copy):
                for gradient in call.result[3]:
                    call.meet(gradient)
                call.touch(workspace)


@rule(aten._thnn_fused_lstm_cell)
def lstm_cell(call: Call) -> None:
    """What the backward needs, then the states."""
    for index in (2, 0, 1):
        call.output(index)


@rule(aten._thnn_fused_gru_cell)
def gru_cell(call: Call) -> None:
    """What the backward needs, then the state."""
    call.output(1)
    call.output(0)
