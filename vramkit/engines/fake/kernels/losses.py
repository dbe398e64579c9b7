"""Losses: first that of each element, then their sum. Some keep the memory of all elements for that one number."""

from __future__ import annotations

import torch

from .call import Call
from .copies import broadcast
from .reductions import buffers
from .registry import rule

aten = torch.ops.aten
_NO_REDUCTION = 0
_SHRUNK = {aten.mse_loss, aten.smooth_l1_loss}
"""Their result is made for all elements and then resized to one: the number keeps that memory."""
_REUSED = {aten.binary_cross_entropy, aten.soft_margin_loss}
"""Their result holds the loss of each element, until it is resized and the sum is copied into it."""


def _elements(*tensors: torch.Tensor) -> torch.Tensor:
    return torch.empty(broadcast(tensors), device="meta")


@rule(aten.mse_loss, aten.smooth_l1_loss, aten.huber_loss, aten.soft_margin_loss, aten.binary_cross_entropy)
def loss(call: Call, self: torch.Tensor, target: torch.Tensor, reduction: int) -> None:
    """The loss of each element, and what adds it up."""
    if reduction == _NO_REDUCTION:
        return
    each, width = _elements(self, target), call.result.element_size()
    size = each.numel() * width
    if call.operator in _SHRUNK or call.operator in _REUSED:
        call.output(size=size)
    with call.holding(width if call.operator in _REUSED else size):
        call.output()
        with call.holding(*buffers(each, (), call.gpu)):
            pass


@rule(aten.binary_cross_entropy_with_logits)
def with_logits(
    call: Call, self: torch.Tensor, target: torch.Tensor, pos_weight: torch.Tensor | None, reduction: int
) -> None:
    """The sigmoid's logarithm, weighted; the loss of each element, and what adds it up."""
    each, width = _elements(self, target), call.result.element_size()
    size = each.numel() * width
    with call.holding(self.nbytes):
        if pos_weight is not None:
            call.touch_together(pos_weight.nbytes, size)
        if reduction == _NO_REDUCTION:
            call.output()
            return
        with call.holding(size):
            call.output()
            with call.holding(*buffers(each, (), call.gpu)):
                pass


@rule(aten.soft_margin_loss_backward)
def soft_margin_backward(call: Call) -> None:
    """Target with its sign changed, times the input, its exponential; the result."""
    size = call.result.nbytes
    negative, product = call.take(size), call.take(size)
    exponential = call.take(size)
    call.give(product, negative)
    call.output()
    call.give(exponential)


@rule(aten.nll_loss2d_forward)
def of_pixels(call: Call, reduction: int) -> None:
    """The sum of weights first where every pixel keeps its loss."""
    for index in (1, 0) if reduction == _NO_REDUCTION else (0, 1):
        call.output(index)


@rule(aten.multi_margin_loss)
def multi_margin(call: Call, self: torch.Tensor, reduction: int) -> None:
    """The loss, and that of each row, if they are added up."""
    call.output()
    if reduction != _NO_REDUCTION and self.dim() > 1:
        call.touch(self.shape[0] * self.element_size())


@rule(aten.multilabel_margin_loss_forward)
def multilabel_margin(call: Call, self: torch.Tensor, reduction: int) -> None:
    """What is a target, the loss of each row, and their sum."""
    call.output(1)
    adds = reduction != _NO_REDUCTION and self.dim() > 1
    with call.holding(*([self.shape[0] * self.element_size()] if adds else [])):
        call.output(0)
