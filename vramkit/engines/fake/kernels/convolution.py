"""Convolutions: cuDNN's workspaces, estimated, and what torch takes around them.

Assumes what cuDNN's heuristics mostly choose for dense tensors on cards with tensor cores: kernels that read channels
last. A workspace then holds copies of the tensors in that order, and for a weight's gradient the partial sums of blocks
that share it. Wrong where cuDNN takes another kernel; held against its own choice for the shapes of ResNets, MobileNet,
ViT and a U-Net it sets a step's peak within 2 %.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..calls import Call
from .reductions import buffers
from .table import rule

aten = torch.ops.aten
_SMALL = 4736  # bytes that kernels take which read tensors as they are
_TILE = 128
_LEAST = 384  # pixels that a block adds up, at least


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _padded(tensor: torch.Tensor) -> int:
    """Bytes of a copy with the channels a multiple of four, as images have three."""
    channels = max(tensor.shape[1], 1)
    return _bytes(tensor) // channels * (-(-channels // 4) * 4)


class _Convolution:
    """The tensors of a convolution and what kind of it they make."""

    def __init__(
        self,
        tensor: torch.Tensor,
        weight: torch.Tensor,
        out: torch.Tensor,
        *,
        transposed: bool,
        groups: int,
        blocks: int,
    ) -> None:
        self._blocks = blocks
        self.tensor, self.weight, self.out = tensor, weight, out
        self.transposed = transposed
        self.is_depthwise = not transposed and groups > 1 and groups == tensor.shape[1] and weight.shape[1] == 1
        last = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
        self.is_channels_last = tensor.dim() in (4, 5) and (
            (tensor.is_contiguous(memory_format=last) and not tensor.is_contiguous())
            or (weight.is_contiguous(memory_format=last) and not weight.is_contiguous())
        )
        self.has_one_pixel = math.prod(tensor.shape[2:]) == 1 == math.prod(out.shape[2:])

    def copy_of(self, tensor: torch.Tensor) -> list[int]:
        """Bytes of the copy that torch makes of a tensor in another order than the kernel's."""
        if not self.is_channels_last:
            ready = tensor.is_contiguous()
        else:
            last = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
            ready = tensor.is_contiguous(memory_format=last)
        return [] if ready else [_bytes(tensor)]

    def _takes_copies(self) -> bool:
        return not (self.is_channels_last or self.is_depthwise or self.has_one_pixel)

    def forward(self) -> int:
        """Bytes of workspace for the result; of a transposed one, that is an input's gradient."""
        return self._of_gradient(self.out, self.tensor) if self.transposed else self._of_result(self.tensor, self.out)

    def of_input(self) -> int:
        """Bytes of workspace for the input's gradient."""
        return self._of_result(self.out, self.tensor) if self.transposed else self._of_gradient(self.tensor, self.out)

    def _of_result(self, tensor: torch.Tensor, out: torch.Tensor) -> int:
        channels = min(tensor.shape[1], out.shape[1])
        if not self._takes_copies():
            return 0
        window = math.prod(self.weight.shape[2:])
        if tensor.shape[1] < 4 and window > 9:  # the first layer, on images
            size = _bytes if window < 64 else _padded
            return size(tensor) + _bytes(out) + size(self.weight) + 16
        if window == 9 and self._keeps_size and max(tensor.shape[1], out.shape[1]) <= 32 <= channels:
            return self._winograd()
        if channels < 32 or max(tensor.shape[1], out.shape[1]) <= 32 or max(tensor.shape[1], out.shape[1]) % 32:
            return _SMALL
        return _bytes(tensor) + _bytes(self.weight) + 16

    def _of_gradient(self, tensor: torch.Tensor, out: torch.Tensor) -> int:
        if not self._takes_copies():
            return 0
        if tensor.shape[1] == 32 and math.prod(self.weight.shape[2:]) == 9 and self._keeps_size:
            return self._winograd()
        return _bytes(tensor) + _bytes(out) + _bytes(self.weight) + 16

    @property
    def _keeps_size(self) -> bool:
        return self.tensor.shape[2:] == self.out.shape[2:]

    def _winograd(self) -> int:
        return self.tensor.shape[1] * self.out.shape[1] * 25 * 4 + 128

    def of_weight(self) -> int:
        """Bytes of workspace for the weight's gradient."""
        if self.is_depthwise or self.has_one_pixel:
            return 0
        channels = self.tensor.shape[1]
        if channels < 4 and self._keeps_size:
            return 0
        weight = _padded(self.weight)
        rows, columns = self.weight.shape[0], self.weight.numel() // max(self.weight.shape[0], 1)
        tiles = -(-rows // _TILE) * -(-columns // _TILE)
        length = self.out.numel() // max(self.out.shape[1], 1)
        splits = min(length // _LEAST, self._blocks // tiles) if self.tensor.dim() > 3 else 0
        sums = weight * splits * 4 // self.weight.element_size() + 144
        return sums if self.is_channels_last else _padded(self.tensor) + _bytes(self.out) + weight + sums


def _convolution(tensor: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, rest: Any, call: Call) -> _Convolution:
    blocks = call.gpu.multiprocessors
    return _Convolution(tensor, weight, out, transposed=rest[3], groups=rest[5], blocks=blocks)


@rule(aten.convolution)
def forward(call: Call) -> None:
    """Copies of what is not contiguous, the result, the workspace."""
    tensor, weight = call.args[:2]
    found = _convolution(tensor, weight, call.result, call.args[3:], call)
    with call.holding(*found.copy_of(tensor), *found.copy_of(weight)):
        call.output()
        _workspace(call, found.forward())


@rule(aten.convolution_backward)
def backward(call: Call) -> None:
    """The gradients of input, weight and bias, each with its workspace."""
    gradient, tensor, weight = call.args[:3]
    found = _convolution(tensor, weight, gradient, call.args[4:], call)
    wanted = call.args[10]
    with call.holding(*found.copy_of(gradient), *found.copy_of(tensor), *found.copy_of(weight)):
        if found.is_depthwise:
            call.output(1)
        if wanted[0]:
            call.output(0)
            _workspace(call, found.of_input())
        if wanted[1] and not found.is_depthwise:
            call.output(1)
            _workspace(call, found.of_weight())
    if wanted[2]:
        call.output(2)
        with call.holding(*buffers(gradient, (0, *range(2, gradient.dim())), call.gpu)):
            pass


def _workspace(call: Call, size: int) -> None:
    call.touch(size)
    call.assume("cuDNN's workspaces of convolutions are estimated", size)
