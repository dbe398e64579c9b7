"""cuDNN's recurrent layers: copies with the time first, and the library's workspace."""

from __future__ import annotations

import math

import torch

from .call import Call
from .registry import rule

aten = torch.ops.aten
_GATES = {0: 1, 1: 1, 2: 4, 3: 3}  # by cuDNN's mode: RNN with ReLU, with tanh, LSTM, GRU


def _workspace(call: Call, tensor: torch.Tensor, first: int) -> int:
    """Bytes that a pass takes for its own work: an assumption, the virtual GPU's.

    Args:
        call: of the forward or the backward.
        tensor: the input.
        first: position of the argument ``mode``.
    """
    mode, hidden = call.args[first], call.args[first + 1]
    directions = 2 if call.args[first + 7] else 1
    packed = call.args[first + 8]  # sequences in each step; cuDNN counts as if all were as long as the longest
    rows = len(packed) * packed[0] if packed else math.prod(tensor.shape[:-1])
    size = int(rows * hidden * directions * tensor.element_size() * _GATES[mode])
    call.assume("cuDNN's workspaces of recurrent layers are assumed", size)
    return size


def _time_first(tensor: torch.Tensor, *, batch_first: bool) -> list[int]:
    """Bytes of the copy that the kernel makes of a tensor unless its time comes first."""
    ready = (tensor.transpose(0, 1) if batch_first else tensor).is_contiguous()
    return [] if ready else [tensor.numel() * tensor.element_size()]


@rule(aten._cudnn_rnn)
def forward(call: Call) -> None:
    """Flat weights unless they are, a copy of the input, the results, the workspace, what the backward needs."""
    tensor = call.args[0]
    batch_first = call.args[10] and not call.args[14]
    call.output(4)
    with call.holding(*_time_first(tensor, batch_first=batch_first)):
        for index in range(3):
            call.output(index)
        with call.holding(_workspace(call, tensor, 6)):
            call.output(3)


@rule(aten._cudnn_rnn_backward)
def backward(call: Call) -> None:
    """Gradients that nobody gave, then those of the input and the states, then those of the weights."""
    tensor, states = call.args[0], (call.args[4], call.args[5])
    batch_first = call.args[14] and not call.args[18]
    missing = [
        state.numel() * state.element_size()
        for state, given in zip(states, call.args[8:10], strict=True)
        if state is not None and given is None
    ]
    out = call.args[6]
    gradient = call.args[7]
    if gradient is None:
        missing.insert(0, out.numel() * out.element_size())
    workspace = _workspace(call, tensor, 10)
    copy = _time_first(tensor, batch_first=batch_first)
    copies = [*copy, *(() if gradient is None else _time_first(gradient, batch_first=batch_first))]
    copies += _time_first(out, batch_first=batch_first)
    with call.holding(*missing):
        with call.holding(*copies):
            for index in range(3):
                call.output(index)
            call.touch(workspace)
        if call.args[21][3]:
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
