"""cuDNN's recurrent layers: copies with the time first, and the library's workspace, by which kernels torch asks for.

How large a workspace is: ``cudnn_sizes.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ....gpus import GPU
from .call import Call
from .cudnn_sizes import GATES, Recurrent, recurrent
from .registry import rule

aten = torch.ops.aten


def _is_persistent(network: Recurrent, dtype: torch.dtype, gpu: GPU, *, backward: bool) -> bool:
    """Whether cuDNN's kernels keep the weights: torch's ``get_algo`` in ATen/native/cudnn/RNN.cpp. For bfloat16 torch
    may ask for them, but cuDNN has none.
    """
    hidden, is_plain = network.hidden, GATES[network.mode] == 1
    if network.packed or network.output != hidden or dtype not in (torch.float16, torch.float32):
        return False
    if hidden <= (128 if backward else 192) * (2 if is_plain else 1):
        return True
    alone = network.layers == network.directions == 1 and hidden <= 1024 and hidden % 128 == network.input % 128 == 0
    return dtype == torch.float16 and alone and _is_static_good(network, gpu)


def _is_static_good(network: Recurrent, gpu: GPU) -> bool:
    """Whether torch finds the large persistent kernels fast on a card."""
    steps, batch = network.steps, network.batch
    if gpu.capability == (7, 0):
        good = (batch % 16 == 0 and batch not in (80, 112)) or batch == 8
        return good and any(steps >= least and batch <= most for least, most in ((40, 128), (20, 96), (10, 32)))
    if gpu.capability < (8, 0) or gpu.capability[1] == 6 or gpu.multiprocessors < 98:
        return False
    is_slow = GATES[network.mode] == 3 or (GATES[network.mode] == 1 and batch >= 96 and network.hidden >= 896)
    return batch % 8 == 0 and batch <= 128 and not is_slow


def _workspace(call: Call, input: torch.Tensor, *, training: bool, backward: bool = False, **given: Any) -> int:
    """Bytes that a pass takes for its own work.

    Args:
        call: of the forward or the backward.
        input: of the layer.
        training: a backward follows, or this is one.
        backward: this is one.
        given: what else `recurrent` wants to know.
    """
    network = recurrent(input.shape, input.element_size(), **given)
    persistent = _is_persistent(network, input.dtype, call.gpu, backward=backward)
    size = replace(network, persistent=persistent).workspace(training=training)
    call.assume("cuDNN's workspaces of recurrent layers are those that cuDNN 9.19 takes on an H200", size)
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
    proj_size: int,
    num_layers: int,
    batch_first: bool,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_sizes: Sequence[int],
) -> None:
    """A copy of the input, results, the weights in one piece unless they are so already, workspace, the reserve."""
    with call.holding(*_time_first(input, batch_first=batch_first and not batch_sizes)):
        for index in (0, 1, 2, 4):
            call.output(index)
        workspace = _workspace(
            call, input, training=train, mode=mode, hidden=hidden_size, projection=proj_size, layers=num_layers,
            batch_first=batch_first, dropout=dropout if train else 0, bidirectional=bidirectional,
            batch_sizes=batch_sizes,
        )  # fmt: skip
        with call.holding(workspace):
            call.output(3)


@rule(aten._cudnn_rnn_backward)
def backward(
    call: Call,
    input: torch.Tensor,
    weight_stride0: int,
    weight_buf: torch.Tensor,
    hx: torch.Tensor,
    cx: torch.Tensor | None,
    output: torch.Tensor,
    grad_output: torch.Tensor | None,
    grad_hy: torch.Tensor | None,
    grad_cy: torch.Tensor | None,
    mode: int,
    hidden_size: int,
    proj_size: int,
    num_layers: int,
    batch_first: bool,
    dropout: float,
    bidirectional: bool,
    batch_sizes: Sequence[int],
    output_mask: Sequence[bool],
) -> None:
    """Gradients that nobody gave, then those of the input and the states, then those of the weights."""
    batch_first = batch_first and not batch_sizes
    pairs = (output, grad_output), (hx, grad_hy), (cx, grad_cy)
    missing = [tensor.nbytes for tensor, gradient in pairs if tensor is not None and gradient is None]
    workspace = _workspace(
        call, input, training=True, backward=True, mode=mode, hidden=hidden_size, projection=proj_size,
        layers=num_layers, batch_first=batch_first, dropout=dropout, bidirectional=bidirectional,
        batch_sizes=batch_sizes,
    )  # fmt: skip
    copy = _time_first(input, batch_first=batch_first)
    copies = [*copy, *(() if grad_output is None else _time_first(grad_output, batch_first=batch_first))]
    copies += _time_first(output, batch_first=batch_first)
    with call.holding(*missing):
        with call.holding(*copies):
            for index in range(3):
                call.output(index)
            call.touch(workspace)
        if output_mask[3]:
            if weight_stride0 < 4:  # without biases: they are cut out of gradients that have room for them
                with call.holding(*copy, weight_buf.nbytes, workspace):
                    for gradient in call.result[3]:
                        call.meet(gradient)
                return
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
