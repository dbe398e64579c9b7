"""Losses: one for each element first, then their sum. Some keep the memory of all elements for that one number."""

from __future__ import annotations

import torch

from .call import Call
from .copies import broadcast, size_of
from .reductions import buffers
from .registry import rule

aten = torch.ops.aten

# operator -> position of its argument "reduction"
_LOSSES = {
    aten.mse_loss: 2, aten.smooth_l1_loss: 2, aten.huber_loss: 2, aten.soft_margin_loss: 2,
    aten.binary_cross_entropy: 3,
}  # fmt: skip
_SHRUNK = {aten.mse_loss, aten.smooth_l1_loss}
"""Their result is made for all elements and then resized to one: the number keeps that memory."""
_REUSED = {aten.binary_cross_entropy, aten.soft_margin_loss}
"""Theirs is that of all elements, resized once there is a sum to be copied into it."""


def _elements(*tensors: torch.Tensor) -> torch.Tensor:
    return torch.empty(broadcast(tensors), device="meta")


@rule(*_LOSSES)
def loss(call: Call) -> None:
    """The loss of each element, and what adds it up."""
    operator = call.func.overloadpacket
    if not call.argument(_LOSSES[operator], "reduction", 1):
        return
    each, width = _elements(*call.args[:2]), call.result.element_size()
    size = each.numel() * width
    if operator in _SHRUNK or operator in _REUSED:
        call.output(size=size)
    with call.holding(width if operator in _REUSED else size):
        call.output()
        with call.holding(*buffers(each, (), call.gpu)):
            pass


@rule(aten.binary_cross_entropy_with_logits)
def with_logits(call: Call) -> None:
    """The sigmoid's logarithm, weighted; the loss of each element, and what adds it up."""
    tensor, target = call.args[:2]
    factor = call.argument(3, "pos_weight")
    each, width = _elements(tensor, target), call.result.element_size()
    size = each.numel() * width
    with call.holding(size_of(tensor)):
        if factor is not None:
            call.touch_together(size_of(factor), size)
        if not call.argument(4, "reduction", 1):
            call.output()
            return
        with call.holding(size):
            call.output()
            with call.holding(*buffers(each, (), call.gpu)):
                pass


@rule(aten.soft_margin_loss_backward)
def soft_margin_backward(call: Call) -> None:
    """Target with its sign changed, times the input, its exponential; the result."""
    size = size_of(call.result)
    negative, product = call.take(size), call.take(size)
    exponential = call.take(size)
    call.give(product, negative)
    call.output()
    call.give(exponential)


@rule(aten.nll_loss2d_forward)
def of_pixels(call: Call) -> None:
    """The sum of weights first where every pixel keeps its loss."""
    for index in (0, 1) if call.argument(3, "reduction", 1) else (1, 0):
        call.output(index)


@rule(aten.multi_margin_loss)
def multi_margin(call: Call) -> None:
    """The loss, and that of each row, if they are added up."""
    call.output()
    tensor = call.args[0]
    rows = tensor.shape[0] if tensor.dim() > 1 else 1
    if call.argument(5, "reduction", 1) and tensor.dim() > 1:
        call.touch(rows * tensor.element_size())


@rule(aten.multilabel_margin_loss_forward)
def multilabel_margin(call: Call) -> None:
    """What is a target, the loss of each row, and their sum."""
    call.output(1)
    tensor = call.args[0]
    adds = call.argument(2, "reduction", 1) and tensor.dim() > 1
    with call.holding(*([tensor.shape[0] * tensor.element_size()] if adds else [])):
        call.output(0)
