"""Where a program looks at the values of a fake other than by an operator: as an operator would, that is an error.

Knows methods of tensors that never come to a dispatch mode.
"""

from __future__ import annotations

from typing import NoReturn

import torch

from ...torch_internals.fakes import DataDependentOutputException


def formatted(tensor: torch.Tensor, how: str) -> str:
    """``f"{tensor:.3f}"``. Without a format, fakes show what they are."""
    return format(tensor.item(), how) if how and tensor.dim() == 0 else object.__format__(tensor, how)


def as_numpy(tensor: torch.Tensor, *, force: bool = False) -> NoReturn:
    """``tensor.numpy()``, and what calls it."""
    raise DataDependentOutputException("numpy()")  # type: ignore[arg-type] # what is told of it is its name
