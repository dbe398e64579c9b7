"""Bytes in and out: the only place that turns text into bytes and bytes into text."""

from __future__ import annotations

import operator
import re

from .errors import UsageError, shown

_UNITS = {
    "B": 1,
    "kB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "TiB": 1024**4,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", re.ASCII)
_MAX_DIGITS = 100  # digits; Python itself reads and writes no more than 4,300


def parse_size(text: str | int) -> int:
    """Bytes of a size such as ``"24 GiB"``, ``"1.5MB"`` or ``512``.

    Args:
        text: a number with one of the units B, KiB, MiB, GiB, TiB (1024-based) or kB, MB, GB, TB (1000-based), or
            a whole number of bytes. Nothing else parses: ``"24G"`` could mean two sizes, 7 % apart.

    Returns:
        Whole bytes, rounded down.

    Raises:
        UsageError: the text is no size, it is negative, or it has more than 100 digits.
    """
    if hasattr(text, "__index__") and not isinstance(text, bool):  # numpy's integers are no int
        size = operator.index(text)
        if size < 0:
            raise UsageError("A size was expected", f"{shown(size)} is negative", instead="Give 0 or more bytes")
        if size >= 10**_MAX_DIGITS:
            raise _too_long(text)
        return size
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[2] not in _UNITS:
        raise UsageError(
            "A size in bytes was expected",
            f"got {shown(text)}",
            instead=f"Write a number and a unit, such as '24 GiB' or '500 MB'; the units are {', '.join(_UNITS)}",
        )
    if len(match[1]) > _MAX_DIGITS:
        raise _too_long(text)
    return _multiply(match[1], _UNITS[match[2]])


def _too_long(text: object) -> UsageError:
    return UsageError(
        "A size in bytes was expected",
        f"got {shown(text)}",
        f"That has more than {_MAX_DIGITS} digits",
        "Give what a memory can have, such as '24 GiB'",
    )


def _multiply(number: str, unit: int) -> int:
    # In integers: 0.1 TB must not lose a byte to a float.
    whole, _, fraction = number.partition(".")
    return int(whole + fraction) * unit // int(10 ** len(fraction))


def format_size(size: int) -> str:
    """Human text of a number of bytes, 1024-based, at most four digits: ``"1.50 GiB"``, ``"512 B"``.

    Args:
        size: bytes; negative sizes (differences) keep their sign. What no float can hold is ``"inf TiB"``.
    """
    sign, rest = ("-", -size) if size < 0 else ("", size)
    if rest < 1024:
        return f"{sign}{rest} B"
    value = float(rest) if rest.bit_length() < 1024 else float("inf")
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        # 1023.95 would round to a five digit 1024.0
        if value < 1023.95 or unit == "TiB":
            break
    digits = 2 if value < 9.995 else 1
    return f"{sign}{value:.{digits}f} {unit}"
