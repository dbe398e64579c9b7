"""Bytes in and out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramkit import UsageError
from vramkit.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("24 GiB", 24 * 1024**3), ("24GB", 24 * 1000**3), ("1.5 MiB", 3 * 512 * 1024), ("0.1 TB", 10**11), (512, 512)],
)
def test_sizes_parse_with_their_units(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["24G", "24", "24 gib", "24 MBps", "-1 GiB", "", "GiB", "1e3 MB", None, True, -5, 2.5])
def test_what_could_mean_two_sizes_is_refused(text: object) -> None:
    with pytest.raises(UsageError):
        parse_size(text)  # type: ignore[arg-type]


def test_the_error_shows_how_to_write_a_size() -> None:
    with pytest.raises(UsageError, match=r"'24G'.*such as '24 GiB'"):
        parse_size("24G")


@given(st.integers(0, 2**50))
def test_a_shown_size_is_within_half_a_percent_of_the_size(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= 0.005 * size + 1  # three digits, then whole bytes


@given(st.integers(0, 2**50))
def test_a_difference_keeps_its_sign(size: int) -> None:
    assert format_size(-size).removeprefix("-") == format_size(size)


@pytest.mark.parametrize(
    "size", ["9" * 5000 + " GiB", "0." + "9" * 5000 + " GiB", 10**5000, -(10**5000), "x" * 5000], ids=type
)
def test_a_size_of_thousands_of_digits_is_refused_in_a_short_text(size: str | int) -> None:
    with pytest.raises(UsageError) as raised:
        parse_size(size)

    assert len(str(raised.value)) < 500


def test_a_size_that_no_float_can_hold_is_shown() -> None:
    assert format_size(10**400) == "inf TiB"
    assert format_size(-(10**5000)) == "-inf TiB"
