"""Whole numbers, rounded as torch and CUB round them where they launch kernels. Knows no kernel."""

from __future__ import annotations


def ceil_div(number: int, divisor: int) -> int:
    """A quotient, rounded up."""
    return -(-number // divisor)


def round_up(number: int, multiple: int) -> int:
    """The next multiple of a number."""
    return -(-number // multiple) * multiple


def last_power_of_two(number: int) -> int:
    """The largest power of two up to a number, at least 1."""
    return 1 << max(number.bit_length() - 1, 0)
