"""Which changes are run: on programs that are made up, whose memory is a sum."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial

import pytest

from vramkit.planning.beside import beside
from vramkit.planning.changes import Change, Family, LeftOut, Severity
from vramkit.planning.draft import Draft
from vramkit.planning.search import Outcome, Search


@dataclass(frozen=True, kw_only=True)
class Saves(Change):
    """Something that saves so many bytes."""

    saved: int
    fails: bool = False

    def write(self, draft: Draft) -> None:
        raise AssertionError


def family(slot: str, *saved: int, severity: Severity = Severity.SAME, fails: bool = False) -> Family:
    changes = (Saves(name=f"{slot} {each}", saved=each, severity=severity, fails=fails) for each in saved)
    return Family(slot=slot, changes=tuple(changes))


class Program:
    """One of 1000 bytes, on a card of some others."""

    def __init__(self, card: int) -> None:
        self.card = card
        self.runs: list[str] = []

    def __call__(self, changes: tuple[Change, ...]) -> Outcome:
        self.runs.append(" + ".join(each.name for each in changes))
        if any(each.fails for each in changes if isinstance(each, Saves)):
            return Outcome(changes=changes, failure="no")
        left = 1000 - sum(each.saved for each in changes if isinstance(each, Saves))
        return Outcome(changes=changes, peak_allocated=left, peak_reserved=left, fits=left <= self.card)


def searched(card: int, *families: Family, everything: bool = False) -> tuple[Program, Search, list[str]]:
    program = Program(card)
    search = Search(families, program, room=card)
    outcomes = search.run(everything=everything)
    return program, search, [" + ".join(each.name for each in one.changes) for one in outcomes if one.fits]


LADDER = family("parts", 100, 200, 300, 400, 500, 600, 700, 800)


def test_of_a_change_in_strengths_the_mildest_that_fits_is_found_by_halving() -> None:
    program, _, fitting = searched(550, LADDER)

    assert "parts 500" in fitting
    assert "parts 400" not in fitting
    assert len(program.runs) <= 1 + 1 + 3


def test_where_the_strongest_does_not_fit_no_milder_form_is_run() -> None:
    program, _, fitting = searched(100, LADDER)

    assert fitting == []
    assert program.runs == ["", "parts 800"]


def test_changes_that_fit_only_together_are_found_and_those_not_needed_left_away() -> None:
    families = (family("free", 50), family("parts", 100, 200, 300), family("blocks", 100, 200, 300))

    _, _, fitting = searched(450, *families)

    assert "parts 300 + blocks 300" in fitting or "free 50 + parts 300 + blocks 200" in fitting
    assert all("parts 300" in each for each in fitting)


def test_another_precision_is_looked_for_beside_what_keeps_the_numbers_and_nothing_dearer() -> None:
    half = family("precision", 300, severity=Severity.PRECISION)
    other = family("optimizer", 900, severity=Severity.TRAINING)

    program, search, fitting = searched(550, LADDER, half, other)

    assert "parts 500" in fitting
    assert "parts 200 + precision 300" in fitting
    assert not any("optimizer" in run for run in program.runs)
    assert [each.name for each in search.left_out] == ["optimizer 900"]


def test_everything_runs_what_is_not_needed_too() -> None:
    other = family("optimizer", 900, severity=Severity.TRAINING)

    assert "optimizer 900" in searched(550, LADDER, other, everything=True)[2]


def test_a_program_that_fits_is_run_with_single_changes_only() -> None:
    program, _, fitting = searched(1000, family("free", 50), LADDER)

    assert program.runs == fitting == ["", "free 50", "parts 800"]


def test_of_two_ways_to_do_the_same_one_is_taken() -> None:
    families = (family("optimizer", 100), family("optimizer", 102), family("blocks", 300))

    program, _, fitting = searched(600, *families)

    assert "optimizer 100 + blocks 300" in fitting
    assert not any(run.count("optimizer") > 1 for run in program.runs)


@pytest.mark.parametrize(
    ("card", "found", "runs"),
    [
        (700, "accumulate 2", 2),
        (450, "accumulate 16", 4),  # it and what is milder, beside the program as it is and the two parts
        (400, "", 3),  # nothing should do: the strongest tells
        (420, "accumulate 32", 4),
    ],
)
def test_of_parts_of_a_batch_those_run_that_should_fit(card: int, found: str, runs: int) -> None:
    # Of 1000 bytes 600 go with the batch.
    parts = Family(
        slot="parts",
        changes=tuple(Saves(name=f"accumulate {n}", saved=600 - 600 // n, passes=n) for n in (2, 4, 8, 16, 32, 64)),
    )

    program, _, fitting = searched(card, parts)

    assert fitting[-1:] == [found] * bool(found)
    assert len(program.runs) == runs
    if found not in {"", "accumulate 2"}:
        before = {"accumulate 16": "accumulate 8", "accumulate 32": "accumulate 16"}[found]
        assert before in program.runs


def test_where_the_strongest_form_does_not_run_a_milder_one_may() -> None:
    parts = Family(
        slot="parts",
        changes=tuple(Saves(name=f"accumulate {n}", saved=600 - 600 // n, passes=n, fails=n == 4) for n in (2, 4)),
    )

    _, search, fitting = searched(700, parts)

    assert fitting == ["accumulate 2"]
    assert search.left_out == []


def test_runs_beside_each_other_come_to_the_same() -> None:
    bad = (family("bad", 900, fails=True), family("worse", 950, fails=True))
    half = family("precision", 300, severity=Severity.PRECISION)
    families = (family("free", 50), bad[0], LADDER, bad[1], family("blocks", 100, 200, 300), half)
    meeting = threading.Barrier(2)

    def meet(change: Family) -> LeftOut | None:
        meeting.wait(60)  # both are under way
        return None

    assert beside(2, meet, families[:2]) == [None, None]
    _, one_by_one, outcomes = searched(350, *families)
    search = Search(families, Program(350), partial(beside, 3), room=350)

    found = search.run(everything=False)
    assert [" + ".join(each.name for each in one.changes) for one in found if one.fits] == outcomes
    assert search.left_out == one_by_one.left_out


def test_a_run_that_fails_beside_others_fails_the_whole_and_no_other_begins() -> None:
    begun: list[int] = []
    end = threading.Event()

    def run(number: int) -> float:
        begun.append(number)
        if number == 1:
            end.wait(60)  # is under way until the other one has failed
        return 1 / number

    with pytest.raises(ZeroDivisionError):
        beside(2, run, [1, 0, *[2] * 100])
    end.set()

    assert sorted(begun) == [0, 1]


def test_a_change_that_does_not_run_is_left_out_with_the_reason() -> None:
    _, search, fitting = searched(550, family("bad", 900, fails=True), LADDER)

    assert "parts 500" in fitting
    assert [(each.name, each.reason) for each in search.left_out] == [("bad 900", "no")]
