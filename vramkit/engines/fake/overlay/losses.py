"""Margin losses, of which torch has no fakes: it would run their kernels, on a device. Knows shapes."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch

from .patches import answer_fakes

aten = torch.ops.aten


def install(stack: ExitStack) -> None:
    """Say what they give."""
    answer_fakes(stack, aten.multi_margin_loss.default, _multi_margin)
    answer_fakes(stack, aten.multi_margin_loss_backward.default, _gradient)
    answer_fakes(stack, aten.multilabel_margin_loss_forward.default, _multilabel_margin)
    answer_fakes(stack, aten.multilabel_margin_loss_backward.default, _gradient)


def _loss(tensor: torch.Tensor, reduction: int) -> torch.Tensor:
    return tensor.new_empty(() if reduction or tensor.dim() < 2 else tensor.shape[:1])


def _multi_margin(
    mode: Any,
    func: Any,
    tensor: torch.Tensor,
    target: torch.Tensor,
    p: float = 1,
    margin: float = 1,
    weight: torch.Tensor | None = None,
    reduction: int = 1,
) -> torch.Tensor:
    with mode:
        return _loss(tensor, reduction)


def _multilabel_margin(
    mode: Any, func: Any, tensor: torch.Tensor, target: torch.Tensor, reduction: int
) -> tuple[torch.Tensor, torch.Tensor]:
    with mode:
        return _loss(tensor, reduction), tensor.new_empty(target.shape)


def _gradient(mode: Any, func: Any, gradient: torch.Tensor, tensor: torch.Tensor, *args: Any) -> torch.Tensor:
    with mode:
        return tensor.new_empty(tensor.shape)
