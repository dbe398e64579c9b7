"""What errors show of values that someone else gave."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramkit import UsageError
from vramkit.counts import check_count
from vramkit.errors import shortened, shown

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner)))
def test_any_value_is_shown_printable_and_short(value: object) -> None:
    assert shown(value).isprintable()
    assert len(shown(value)) <= 210


@given(st.text(max_size=100).filter(str.isprintable) | st.integers(-(2**64), 2**64) | st.floats() | st.none())
def test_a_short_value_is_shown_as_python_writes_it(value: object) -> None:
    assert shown(value) == repr(value) or len(repr(value)) > 200


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (10**5000, "a number of 16,610 bits"),
        ("x" * 201, "'" + "x" * 199 + "..."),
        ([[]], "a list"),
        ({"a": 1}, "a dict"),
        ((8, 99), "(8, 99)"),
        ((8, (9,)), "a tuple"),
        (tuple(range(9)), "a tuple"),
        ("\x1b[31m", r"'\x1b[31m'"),
    ],
    ids=type,
)
def test_what_is_long_or_acts_on_a_terminal_is_shown_so(value: object, text: str) -> None:
    assert shown(value) == text


def test_a_repr_without_end_is_never_made() -> None:
    nested: list[object] = []
    for _ in range(100):
        nested = [nested, nested]

    assert shown(nested) == "a list"


def test_a_text_is_shortened_after_it_was_made_printable() -> None:
    assert shortened("\x1b" * 100) == r"\x1b" * 50 + "..."


@pytest.mark.parametrize("count", [-(10**5000), 10**5000, "9" * 5000], ids=type)
def test_a_count_of_thousands_of_digits_is_refused_in_a_short_text(count: object) -> None:
    with pytest.raises(UsageError, match="steps=") as raised:
        check_count("A test was made", "steps", count, maximum=10)

    assert len(str(raised.value)) < 400
