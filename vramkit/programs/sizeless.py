"""Batches that can't be made larger or smaller: what to tell of one. Knows no tensors, as estimates need no torch."""

from __future__ import annotations

from ..errors import UsageError


def without_size(asked: str) -> UsageError:
    """What to tell of a batch that can't be made larger or smaller.

    Args:
        asked: what was asked for, as an error's text begins.
    """
    return UsageError(
        asked,
        "no tensor with a dimension 0 was found in the batch",
        "Tensors are looked for in tuples, lists, dicts and dataclasses, and nothing else says how it grows",
        "Give a batch whose tensors begin with the batch dimension, or a callable size -> batch",
    )
