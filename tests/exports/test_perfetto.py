"""The trace for Perfetto, read as JSON: its counters, slices and times, on synthetic tapes."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from exported_profiles import PROFILES
from hypothesis import given
from long_tapes import long_tape
from strategies import tapes
from told_profiles import MIB, training

from vramkit.exports import perfetto
from vramkit.exports.axis import has_clock, moment_times
from vramkit.exports.perfetto import write_perfetto
from vramkit.reports.sentences import CATEGORY_NAMES
from vramkit.results.profile import Profile
from vramkit.tape.events import Category, Tape


def written(profile: Profile) -> dict[str, Any]:
    file = io.BytesIO()
    write_perfetto(profile, file)
    return json.loads(file.getvalue())


def counters(trace: dict[str, Any], device: int = 0) -> dict[str, list[tuple[float, int]]]:
    found: dict[str, list[tuple[float, int]]] = {}
    for event in trace["traceEvents"]:
        if event["ph"] == "C" and event["pid"] == device:
            found.setdefault(event["name"], []).append((event["ts"], event["args"]["bytes"]))
    return found


def slices(trace: dict[str, Any], track: int) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event["ph"] == "X" and event["tid"] == track]


@pytest.mark.parametrize("name", PROFILES)
def test_counters_begin_with_the_start_and_reach_every_peak(name: str) -> None:
    profile = PROFILES[name]

    trace = written(profile)

    for number, one in enumerate(profile.each_device()):
        found = counters(trace, number)
        assert {at[0][0] for at in found.values()} == {0}
        highest = {name: max(value for _, value in values) for name, values in found.items()}
        assert highest.pop("allocated") == one.peak_allocated
        assert highest.pop("reserved") == one.peak_reserved
        highest.pop("rounding and slack")
        by_category = one.timeline.by_category.max(axis=0)
        assert highest == {CATEGORY_NAMES[each]: by_category[each] for each in Category if by_category[each]}


@given(tapes())
def test_a_counter_has_its_value_at_every_moment(tape: Tape) -> None:
    found = counters(written(Profile(tape=tape)))

    times = moment_times(tape) / 1000
    for name, column in (("allocated", tape.allocated), ("reserved", tape.reserved)):
        at, values = zip(*found[name], strict=True)
        shown = np.array(values)[np.searchsorted(at, times[1:], "right") - 1]
        assert shown.tolist() == column.tolist()


@pytest.mark.parametrize("name", PROFILES)
def test_slices_are_inside_one_another_or_apart(name: str) -> None:
    trace = written(PROFILES[name])

    for device in range(3):
        for track in (1, 2, 3):
            open_until = [float("inf")]
            mine = [each for each in slices(trace, track) if each["pid"] == device]
            for each in sorted(mine, key=lambda each: (each["ts"], -each["dur"])):
                while open_until[-1] <= each["ts"]:
                    open_until.pop()
                assert each["ts"] + each["dur"] <= open_until[-1]
                open_until.append(each["ts"] + each["dur"])


def test_steps_phases_and_modules_are_slices() -> None:
    trace = written(training().profile())

    assert [each["name"] for each in slices(trace, 1)] == ["step 1"]
    assert [each["name"] for each in slices(trace, 2)] == ["forward", "backward", "optimizer step"]
    modules = slices(trace, 3)
    assert [each["name"] for each in modules if each["args"]["class"] == "Block"][:3] == [
        "blocks.0",
        "blocks.1",
        "blocks.2",
    ]
    assert {"module": "Net.blocks.0.up", "class": "Linear"} in [each["args"] for each in modules]


def test_a_failure_is_a_mark() -> None:
    trace = written(PROFILES["hostile"])

    [mark] = [each for each in trace["traceEvents"] if each["ph"] == "i"]
    assert mark["name"] == "out of memory: 1.00 TiB asked for"


def test_without_a_clock_the_axis_is_the_number_of_the_event() -> None:
    profile = training().profile()  # whose times are 0, 1, 2, ...

    about = written(profile)["otherData"]["devices"]["cuda:0"]

    assert not has_clock(profile.tape)
    assert about["time"].startswith("number of the event")
    assert moment_times(profile.tape).tolist() == [1000 * row for row in range(len(profile.timeline))]


def test_times_of_a_clock_stay_apart_and_in_order() -> None:
    tape = training().tape()
    events = tape.events[:6].copy()
    events["time"] = [0, 5, 5, 5, 4, 9]

    times = moment_times(replace(tape, events=events))

    assert has_clock(replace(tape, events=events))
    assert times.tolist() == [0, 1000, 6000, 6250, 6500, 6750, 10000]


def test_a_long_tape_is_thinned_and_no_counter_loses_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = Profile(tape=long_tape(20_000))
    monkeypatch.setattr(perfetto, "MAX_MOMENTS", 2_000)
    monkeypatch.setattr(perfetto, "MAX_SLICES", 300)

    trace = written(profile)

    found = counters(trace)
    for category in Category:
        values = [value for _, value in found[CATEGORY_NAMES[category]]]
        assert max(values) == profile.timeline.of(category).max()
    assert max(map(len, found.values())) <= 2_000
    about = trace["otherData"]["devices"]["cuda:0"]
    assert about["moments"].startswith(f"{len({at for each in found.values() for at, _ in each})} of 20001; ")
    assert len(slices(trace, 3)) == 300
    stays = 2 + 5 + 5 + 9  # in a step: in Net twice; inside it forwards, and backwards up to the last module and down
    assert about["slices left out"]["modules"] == 100 * stays - 300


def test_names_stay_texts_of_json() -> None:
    trace = written(replace(PROFILES["hostile"], notes=("\x1b[31m",)))

    assert "\\x1b" in json.dumps(trace)
    assert all(each["name"].isprintable() for each in trace["traceEvents"])
    assert PROFILES["hostile"].tape.peak_allocated == 3 * MIB
