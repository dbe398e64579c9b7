"""A few programs of what people do wrong: what is advised is what the change saves, and stands where it is seen."""

from __future__ import annotations

import advice_programs
import pytest
from bench_advice import measured
from needs import needs_virtual_gpu


@needs_virtual_gpu
@pytest.mark.parametrize(
    "program",
    [
        advice_programs.validation,
        advice_programs.logged_penalty,
        advice_programs.recurrent,
        advice_programs.summed,
        advice_programs.recommender,
        advice_programs.deep_linear,
    ],
    ids=lambda each: each.__name__,
)
def test_what_is_advised_is_what_the_change_saves(program: object) -> None:
    rows = measured(program.__name__)  # type: ignore[attr-defined] # a function

    assert rows
    assert [row for row in rows if not (row.holds and row.is_found)] == []
    assert [row for row in rows if row.said is None] == [row for row in rows if row.saved <= 0]
