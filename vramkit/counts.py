"""Whole numbers that a caller gives: checked. Knows nothing of what they count."""

from __future__ import annotations

import operator
from typing import Any

from .errors import UsageError, shown


def check_count(asked: str, name: str, value: Any, *, maximum: int | None = None) -> int:
    """An argument as an int, NumPy's integers too.

    Args:
        asked: what was asked for, as an error's text begins.
        name: of the argument.
        value: what was given.
        maximum: the largest that is allowed.

    Raises:
        UsageError: it is no whole number from 1 on, or larger than allowed.
    """
    try:
        count = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = None
    if count is not None and 1 <= count <= (count if maximum is None else maximum):
        return count
    if count is None:
        why = f"{name} has to be a whole number"
    else:
        why = "It has to be at least 1" if count < 1 else "No larger one is tried"
    allowed = "from 1 on" if maximum is None else f"from 1 to {maximum}"
    raise UsageError(asked, f"with {name}={shown(value)}", why, f"Give a whole number {allowed}")
