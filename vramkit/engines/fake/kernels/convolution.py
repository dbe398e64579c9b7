"""Convolutions: what torch takes around cuDNN's workspaces, and what its own kernels take where cuDNN has none.

How large those workspaces are: ``cudnn_workspaces.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .call import Call
from .cudnn_choices import Problem, Wanted
from .cudnn_workspaces import workspace
from .reductions import buffers
from .registry import rule

aten = torch.ops.aten


class _Convolution:
    """The tensors of a convolution and what kind of it they make."""

    def __init__(
        self, tensor: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, *, transposed: bool, groups: int
    ) -> None:
        self.is_transposed = transposed
        self._last = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
        self._is_last = tensor.dim() in (4, 5) and any(
            each.is_contiguous(memory_format=self._last) and not each.is_contiguous() for each in (tensor, weight)
        )
        is_depthwise = not transposed and groups > 1 and groups == tensor.shape[1] and weight.shape[1] == 1
        self.is_own = is_depthwise and not self._is_last
        """Torch's own kernel for separate channels computes it."""
        inside, outside = (out, tensor) if transposed else (tensor, out)
        self._problem = Problem(
            input=inside, weight=weight, output=outside, groups=groups, is_channels_last=self._is_last
        )

    def copy_of(self, tensor: torch.Tensor) -> list[int]:
        """Bytes of the copy that torch makes of a tensor in another order than the kernel's."""
        ready = tensor.is_contiguous(memory_format=self._last) if self._is_last else tensor.is_contiguous()
        return [] if ready else [tensor.nbytes]

    def take(self, call: Call, wanted: Wanted) -> None:
        """Take what a kernel wants beside its result, and give it back."""
        if self.is_own:
            return
        if not _has_cudnn(self._problem.input, call):
            with call.holding(self._columns(wanted)):
                call.cublas_workspace()
            return
        if self.is_transposed:
            turned: dict[Wanted, Wanted] = {"output": "input", "input": "output", "weight": "weight"}
            wanted = turned[wanted]
        size = workspace(self._problem, wanted, call.gpu)
        call.touch(size)
        call.assume("cuDNN's workspaces of convolutions are estimated", size)

    def _columns(self, wanted: Wanted) -> int:
        """Bytes of one image, unfolded into a matrix of windows; a product by pixels needs none."""
        inside, weight, outside = self._problem.input, self._problem.weight, self._problem.output
        if wanted == "output" and weight.shape[2:].numel() == 1 and inside.shape[2:] == outside.shape[2:]:
            return 0
        pixels = math.prod(outside.shape[2:])
        return inside.shape[1] * math.prod(weight.shape[2:]) * pixels * inside.element_size()


def _has_cudnn(tensor: torch.Tensor, call: Call) -> bool:
    known = tensor.dtype is not torch.bfloat16 or call.gpu.capability >= (8, 0)
    return known and torch.backends.cudnn.enabled


@rule(aten.convolution)
def forward(call: Call, input: torch.Tensor, weight: torch.Tensor, transposed: bool, groups: int) -> None:
    """Copies of what is not contiguous, the result, the workspace."""
    found = _Convolution(input, weight, call.result, transposed=transposed, groups=groups)
    with call.holding(*found.copy_of(input), *found.copy_of(weight)):
        call.output()
        found.take(call, "output")


@rule(aten.convolution_backward)
def backward(
    call: Call,
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    transposed: bool,
    groups: int,
    output_mask: Sequence[bool],
) -> None:
    """The gradients of input, weight and bias, each with its workspace."""
    found = _Convolution(input, weight, grad_output, transposed=transposed, groups=groups)
    with call.holding(*found.copy_of(grad_output), *found.copy_of(input), *found.copy_of(weight)):
        if found.is_own:
            call.output(1)
        if output_mask[0]:
            call.output(0)
            found.take(call, "input")
        if output_mask[1] and not found.is_own:
            call.output(1)
            found.take(call, "weight")
    if output_mask[2]:
        call.output(2)
        with call.holding(*buffers(grad_output, (0, *range(2, grad_output.dim())), call.gpu)):
            pass
