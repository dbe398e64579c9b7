"""The HTML report as data: what is packed is what the result says, at every moment that is shown."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shown_pages import ShownDevice, shown
from strategies import tapes
from told_profiles import GIB, HEAD, MIB, Story, churning, training

from vramkit.allocator import CachingAllocator
from vramkit.reports.advice import advise
from vramkit.reports.html import payload as payload_module
from vramkit.reports.html.columns import Columns, column, unpacked
from vramkit.reports.html.segments import segment_lives
from vramkit.reports.html.tabs import Tabs
from vramkit.reports.moment import moment_of
from vramkit.reports.moments import shown_moments
from vramkit.results.profile import Profile
from vramkit.tape.events import ALLOCATION, EVENT, Action, Category, Phase, Tape
from vramkit.tape.memory import MemoryResult

NONE = np.zeros(0, np.int64)


def agrees(device: ShownDevice, result: MemoryResult) -> None:
    """What the page would draw at each of its moments is what the result says of it."""
    timeline, rows = result.timeline, device.rows
    assert device.header["count"] == len(rows)
    for category in Category:
        assert (device.category(category) == timeline.of(category)[rows]).all()
    assert (device.allocated == timeline.allocated[rows]).all()
    if result.device != "cpu":
        assert (device.reserved == timeline.reserved[rows]).all()


# -- columns ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(-(2**52), 2**52))))
def test_columns_come_back_as_they_were(lists: list[list[int]]) -> None:
    columns = Columns()

    places = [columns.add(np.array(each, np.int64)) for each in lists]
    header, content = unpacked(columns.packed({"places": places}))

    assert [column(content, place).tolist() for place in header["places"]] == lists


def test_rising_numbers_are_written_as_small_changes() -> None:
    assert Columns().add(np.arange(10**6))[0] == "i1"


# -- moments ----------------------------------------------------------------------------------------------------------


@given(tapes())
def test_every_moment_is_shown_as_it_was(tape: Tape) -> None:
    profile = Profile(tape=tape)

    [device] = shown(profile)

    assert (device.rows == np.arange(len(profile.timeline))).all()
    agrees(device, profile)


@given(tapes(), st.integers(30, 60))
def test_of_many_moments_some_are_shown_and_no_peak_is_missing(tape: Tape, limit: int) -> None:
    timeline = Profile(tape=tape).timeline

    rows = shown_moments(Profile(tape=tape), limit, NONE)

    assert len(rows) <= limit
    assert rows[0] == 0
    assert rows[-1] == len(timeline) - 1
    assert timeline.peak_moment in rows
    for series in (*timeline.by_category.T, timeline.allocated, timeline.reserved, timeline.slack):
        assert series[rows].max() == series.max()


def test_a_million_events_are_thinned_and_no_peak_of_any_stretch_is_missing() -> None:
    profile = churning(500_000)
    timeline = profile.timeline

    [device] = shown(profile)

    rows = device.rows
    assert len(timeline) == 1_000_001
    assert len(rows) <= payload_module.MAX_MOMENTS
    agrees(device, profile)
    # Of each hundredth of the recording, the highest and the lowest that was ever allocated, and each category's peak.
    edges = np.linspace(0, len(timeline), 101).astype(int)
    for first, end in pairwise(edges):
        near = rows[(rows >= first - 100) & (rows < end + 100)]
        for category in Category:
            assert timeline.of(category)[near].max() >= timeline.of(category)[first:end].max()
        assert timeline.allocated[near].min() <= timeline.allocated[first:end].min()


def test_moments_with_a_failure_or_a_flush_are_always_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story()
    for i in range(200):
        story.free(story.alloc(MIB, Category.TEMPORARY, step=i), Phase.FORWARD, step=i)
    story.event(Action.OOM, GIB, Phase.FORWARD, step=199)
    story.event(Action.SEGMENT_FREE, MIB, Phase.FORWARD, step=199)
    for i in range(200):
        story.free(story.alloc(2 * MIB, Category.TEMPORARY, step=200 + i), Phase.FORWARD, step=200 + i)
    monkeypatch.setattr(payload_module, "MAX_MOMENTS", 60)

    [device] = shown(story.profile())

    rows = device.rows
    assert len(rows) <= 60
    assert [rows[each["moment"]] for each in device.header["failures"]] == [401]
    assert [rows[each] for each in device.header["flushes"]] == [402]


# -- segments ---------------------------------------------------------------------------------------------------------


@given(tapes(), st.sampled_from(["", "expandable_segments:True", "garbage_collection_threshold:0.3"]))
def test_segments_hold_what_is_reserved_and_every_block(tape: Tape, conf: str) -> None:
    tape = replace(CachingAllocator(conf=conf).replay(tape).tape, device="cuda:0")
    profile = Profile(tape=tape)

    [device] = shown(profile)

    agrees(device, profile)
    segments, blocks = device.table("segments"), device.table("allocations")
    for i in range(len(blocks["begin"])):
        there = (segments["begin"] <= blocks["begin"][i]) & (segments["begin"] + segments["count"] > blocks["begin"][i])
        starts, sizes = segments["address"][there], segments["size"][there]
        assert ((starts <= blocks["address"][i]) & (blocks["address"][i] < starts + sizes)).any()


def test_a_range_that_is_unmapped_in_part_goes_on_as_what_is_left() -> None:
    moves = [(Action.SEGMENT_MAP, 0, 60), (Action.SEGMENT_MAP, 60, 20), (Action.SEGMENT_UNMAP, 20, 20)]
    events = np.zeros(3, EVENT)
    for row, (action, address, size) in zip(events, moves, strict=True):
        row["action"], row["address"], row["size"] = action, address, size

    lives = segment_lives(Tape(events=events, allocations=np.zeros(0, ALLOCATION)))

    assert lives[:, :4].tolist() == [[0, 2, 0, 60], [1, -1, 60, 20], [2, -1, 0, 20], [2, -1, 40, 20]]


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_a_recording_without_events_is_one_moment() -> None:
    [device] = shown(Story().profile())

    assert device.rows.tolist() == [0]
    assert device.header["events"] == 0


def test_one_allocation_is_two_moments() -> None:
    story = Story()
    story.alloc(MIB, Category.OTHER)

    [device] = shown(story.profile())

    assert device.allocated.tolist() == [0, MIB]


def test_the_moment_advice_and_modules_are_those_of_the_text_report() -> None:
    profile = training().profile()

    [device] = shown(profile)

    moment = moment_of(profile)
    assert device.rows[device.header["moment"]] == moment.event + 1
    assert [each["saves"] for each in device.header["advice"]] == [each.saves for each in advise(profile, moment)]
    peaks = {module.name: module.peak for root in profile.by_module for module in root.walk()}
    assert dict(zip(device.header["modules"]["name"], device.table("modules")["peak"], strict=True)) == peaks


def test_a_parameters_gradient_belongs_to_the_parameters_module() -> None:
    [device] = shown(training().profile())

    table = device.table("allocations")
    gradients = table["category"] == Category.GRADIENT
    owners = [device.header["modules"]["name"][owner] for owner in table["owner"][gradients]]
    assert owners == ["Net.blocks.0.up", "Net.head"]


def test_each_device_has_its_own_tables() -> None:
    one, two, three = (training().profile(device=f"cuda:{i}") for i in range(3))
    story = training()
    story.event(Action.OOM, 7 * MIB, Phase.BACKWARD, module=HEAD)
    failed = story.profile(device="cuda:1", capacity=GIB)

    devices = shown(replace(one, others=(failed, three)))

    assert [each.header["device"] for each in devices] == ["cuda:0", "cuda:1", "cuda:2"]
    assert [each.header["failed"] for each in devices] == [False, True, False]
    for device, result in zip(devices, (two, failed, three), strict=True):
        agrees(device, result)


def test_a_page_of_several_ranks_has_a_tab_for_each_in_their_order() -> None:
    ranks = [training().profile(), training(bytes_per_number=8).profile()]

    header, _ = payload_module.payload(
        ranks[1], tabs=Tabs(kind="rank", of=[("rank 1", ranks[1]), ("rank 0", ranks[0])])
    )

    assert header["tabs"] == "rank"
    assert [(each["tab"], each["peak_allocated"]) for each in header["devices"]] == [
        ("rank 1", ranks[1].peak_allocated),
        ("rank 0", ranks[0].peak_allocated),
    ]
