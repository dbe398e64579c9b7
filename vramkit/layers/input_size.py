"""Batches from sizes, as torchsummary and torchinfo take them. Knows shapes and dtypes; runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch

from ..errors import UsageError, shown
from ..programs.objects import Models

Size = Sequence[int]
InputSize = Size | Sequence[Size] | Mapping[str, Size]
"""The size of a model's input; several: of its arguments, or of keyword arguments by name."""
Dtypes = torch.dtype | Sequence[torch.dtype] | Mapping[str, torch.dtype]
"""The dtype of every input, or of each."""


def is_input_size(value: object) -> TypeGuard[InputSize]:
    """Whether a value is made of sizes alone: no batch is, as that has tensors."""
    if isinstance(value, Mapping):
        return bool(value) and all(map(_is_size, value.values()))
    return _is_size(value) or (isinstance(value, (list, tuple)) and bool(value) and all(map(_is_size, value)))


def batches(
    asked: str, given: object, dtypes: Dtypes | None, batch_size: int | None, model: Models
) -> Iterator[tuple[str, object]]:
    """What a size may mean, the likelier first.

    Args:
        asked: what was asked for, as an error's text begins.
        given: the size.
        dtypes: of the tensors; None: that of the model's first parameter with a floating point.
        batch_size: how many samples, where the size is that of one; None: that is not known.
        model: the model, or several.

    Yields:
        How it was read, in words, and a batch of zeros.

    Raises:
        UsageError: it is no size, or the dtypes don't go with it.
    """
    if not is_input_size(given):
        raise UsageError(
            asked,
            f"with input_size={shown(given)}",
            "It has to be a tuple of whole numbers from 1 on, several such tuples, or a dict of them by name",
            "Write input_size=(1, 28, 28); of several inputs input_size=[(1, 28, 28), (10,)]",
        )
    kinds = _kinds(asked, given, dtypes, model)
    if batch_size is None:
        yield "with its batch", _zeros(given, kinds, ())
    yield "as that of one sample", _zeros(given, kinds, (batch_size or 1,))


def _is_size(value: object) -> TypeGuard[Size]:
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(each, int) and not isinstance(each, bool) and each >= 1 for each in value)
    )


def _zeros(sizes: Any, dtypes: Callable[[Any], torch.dtype], before: tuple[int, ...]) -> object:
    if isinstance(sizes, Mapping):
        return {name: torch.zeros((*before, *size), dtype=dtypes(name)) for name, size in sizes.items()}
    if _is_size(sizes):
        return torch.zeros((*before, *sizes), dtype=dtypes(0))
    return tuple(torch.zeros((*before, *size), dtype=dtypes(number)) for number, size in enumerate(sizes))


def _kinds(asked: str, sizes: Any, dtypes: Dtypes | None, model: Models) -> Callable[[Any], torch.dtype]:
    """The dtype of each input, by its number or name."""
    if dtypes is None or isinstance(dtypes, torch.dtype):
        kind = _dtype_of(model) if dtypes is None else dtypes
        return lambda _: kind
    named = dict(dtypes) if isinstance(dtypes, Mapping) else dict(enumerate(dtypes))
    wanted = list(sizes) if isinstance(sizes, Mapping) else list(range(1 if _is_size(sizes) else len(sizes)))
    if set(named) != set(wanted) or not all(isinstance(each, torch.dtype) for each in named.values()):
        raise UsageError(
            asked,
            f"with dtypes={shown(dtypes)} for {len(wanted)} inputs",
            instead="Give a dtype for all of them, such as torch.long, or one for each",
        )
    return named.__getitem__


def _dtype_of(model: Models) -> torch.dtype:
    models = model.values() if isinstance(model, Mapping) else [model] if isinstance(model, torch.nn.Module) else model
    kinds = (each.dtype for part in models for each in part.parameters())
    return next((kind for kind in kinds if kind.is_floating_point), torch.get_default_dtype())
