"""Ties by address, as torch 2.11 and older break them: what is predicted follows the tape's own torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from scaled_programs import Op, tape_of

import vramkit
from vramkit import CachingAllocator, gpus
from vramkit.engines import Run
from vramkit.estimation.result import predict
from vramkit.scaling.replays import Forecast, allocator_of, replayed
from vramkit.scaling.requests import requests_of
from vramkit.tape.events import Tape

MIB = 1 << 20
# Two segments of 20 MiB have 12 MiB free each. Which of them serves the next 12 MiB decides whether the other's
# neighbour, 8 MiB, leaves a whole segment free for the last request.
TIED: list[Op] = [
    ("alloc", "first", 8 * MIB),
    ("alloc", "beside the first", 12 * MIB),
    ("alloc", "second", 8 * MIB),
    ("alloc", "beside the second", 12 * MIB),
    ("free", "beside the first"),
    ("free", "beside the second"),
    ("alloc", "tied", 12 * MIB),
    ("free", "first"),
    ("alloc", "last", 20 * MIB),
]


def tied(tie_break: str) -> Tape:
    tape = tape_of(TIED)
    for table in (tape.events, tape.allocations):
        table["module"] = -1
    tape.allocations["name"] = -1
    return replace(tape, tie_break=tie_break)  # type: ignore[arg-type] # a test's own literal


def reserved(tape: Tape, order: str) -> int:
    return replayed(tape, allocator_of(tape, address_order=order)).reserved  # type: ignore[arg-type] # likewise


def test_only_ties_by_address_let_addresses_decide() -> None:
    assert (reserved(tied("age"), "falling"), reserved(tied("age"), "rising")) == (60 * MIB, 60 * MIB)
    assert (reserved(tied("address"), "falling"), reserved(tied("address"), "rising")) == (40 * MIB, 60 * MIB)


def test_a_forecast_for_a_driver_that_nobody_knows_is_the_worse_of_both_orders() -> None:
    forecast = Forecast()
    for size in (2, 3):
        forecast.add(requests_of(size, tied("address")))

    found = forecast.peaks(4)

    assert found is not None
    assert found.reserved == 60 * MIB


@pytest.mark.parametrize("tie_break", ["age", "address"])
def test_a_replay_breaks_ties_as_the_tapes_own_torch_did(tie_break: str, tmp_path: Path) -> None:
    vramkit.Profile(tape=tied(tie_break)).save(tmp_path / "step.npz")
    loaded = vramkit.load(tmp_path / "step.npz").tape

    assert loaded.tie_break == tie_break
    assert CachingAllocator().replay(loaded).peak_reserved == reserved(loaded, "falling")
    assert CachingAllocator(tie_break="age").replay(loaded).peak_reserved == 60 * MIB


class Session:
    """Runs the program that is tied."""

    engine = "virtual"

    def __init__(self, tie_break: str) -> None:
        self.tape = CachingAllocator().replay(tied(tie_break)).tape

    def run(self, gpu: vramkit.GPU, batch_size: int, *, unlimited: bool = False, detailed: bool = True) -> Run:
        peaks = self.tape.peak_allocated, self.tape.peak_reserved
        profile = vramkit.Profile(tape=self.tape)
        return Run(ran_out=False, peak_allocated=peaks[0], peak_reserved=peaks[1], profile=profile)


def test_an_estimate_says_what_would_be_reserved_with_segments_placed_upwards() -> None:
    card = gpus.find("t4")

    by_address, by_age = (predict(Session(each), card, 1) for each in ("address", "age"))

    assert by_address.peak_reserved == 40 * MIB
    [note] = by_address.notes
    assert "upwards, 60.0 MiB would be reserved" in note
    assert by_age.notes == ()
