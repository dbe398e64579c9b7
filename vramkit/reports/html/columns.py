"""Numbers of a report in few bytes: columns one after another, which a browser reads as typed arrays.

Knows how a column is written; not what it means. ``assets/data.js`` is its counterpart.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

ColumnPlace = tuple[str, int, int, int]
"""Where a column is, as JSON can carry it: its type, its first byte, how many numbers, and whether they are changes."""

_WHOLE = ("i1", "i2", "i4")
_ALIGNED = 8


class Columns:
    """Collects columns, each in the narrowest type that holds its numbers.

    Whole numbers only. What no 32 bits hold becomes a 64-bit float, exact up to 2**53 (8 PiB in bytes).
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._length = 0

    def add(self, values: npt.ArrayLike) -> ColumnPlace:
        """Add a column, as numbers or as changes from one to the next, whichever are smaller.

        Args:
            values: whole numbers; shape ``(rows,)``.
        """
        numbers = np.asarray(values, np.int64)
        changes = np.diff(numbers, prepend=np.int64(0))
        is_changes = _weight(changes) < _weight(numbers)
        written = changes if is_changes else numbers
        kind = _narrowest(written)
        content = written.astype(f"<{kind}").tobytes()
        place = (kind, self._length, len(written), int(is_changes))
        content += bytes(-len(content) % _ALIGNED)  # a typed array begins at a multiple of its item
        self._parts.append(content)
        self._length += len(content)
        return place

    def packed(self, header: Mapping[str, Any]) -> str:
        """Header and columns as one text of letters and digits: no name in it can be taken for a part of the page."""
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNED)
        size = np.array([len(text), 0], "<u4").tobytes()
        return base64.b64encode(gzip.compress(b"".join([size, text, *self._parts]), 6, mtime=0)).decode()


def unpacked(text: str) -> tuple[dict[str, Any], bytes]:
    """Header and columns of what `Columns.packed` made."""
    content = gzip.decompress(base64.b64decode(text))
    end = _ALIGNED + int(np.frombuffer(content, "<u4", 1)[0])
    header: dict[str, Any] = json.loads(content[_ALIGNED:end])
    return header, content[end:]


def column(content: bytes, place: ColumnPlace) -> npt.NDArray[np.int64]:
    """The numbers of one column of what `unpacked` gave."""
    kind, start, count, is_changes = place
    numbers = np.frombuffer(content, f"<{kind}", count, start).astype(np.int64)
    return np.cumsum(numbers) if is_changes else numbers


def _weight(values: npt.NDArray[np.int64]) -> tuple[int, float]:
    """How much room numbers need: first by the type that holds them all."""
    return np.dtype(_narrowest(values)).itemsize, float(np.abs(values, dtype=np.float64).sum())


def _narrowest(values: npt.NDArray[np.int64]) -> str:
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    for kind in _WHOLE:
        bounds = np.iinfo(kind)
        if bounds.min <= low and high <= bounds.max:
            return kind
    return "f8"
