"""Copies that kernels make of inputs whose memory is not in the order that they read. Knows strides; no operator."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def broadcast(tensors: Iterable[torch.Tensor]) -> torch.Size:
    """The shape of the result of an elementwise operator on tensors."""
    shape: torch.Size = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))  # type: ignore[no-untyped-call] # torch's
    return shape


def copies(*tensors: torch.Tensor | None) -> list[int]:
    """Bytes of the contiguous copies that a kernel makes of its inputs, of each that is not contiguous."""
    return [tensor.nbytes for tensor in tensors if tensor is not None and not tensor.is_contiguous()]


def matrix_copies(*tensors: torch.Tensor) -> list[int]:
    """Bytes of the copies that are made for cuBLAS, which reads matrices by rows or by columns."""
    return [tensor.nbytes for tensor in tensors if tensor.dim() >= 2 and not _is_matrix(tensor)]


def _is_matrix(tensor: torch.Tensor) -> bool:
    rows, columns = tensor.shape[-2:]
    by_row, by_column = tensor.stride()[-2:]
    return bool((by_column == 1 and by_row >= max(1, columns)) or (by_row == 1 and by_column >= max(1, rows)))
