"""The HTML report in headless Chromium: what it shows is what the result says, whoever wrote the names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Opened, running_chromium
from test_page import HOSTILE, hostile
from told_profiles import GIB, HEAD, MIB, Story, training

from vramkit.allocator import CachingAllocator
from vramkit.results.profile import Profile
from vramkit.sizes import format_size
from vramkit.tape.events import EVENT, Action, Category, Phase

Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with running_chromium() as browser:
        yield browser


@pytest.fixture
def open_page(chromium: Any, tmp_path: Path) -> Iterator[Open]:
    opened: list[Opened] = []

    def open_one(result: Profile, **options: Any) -> Opened:
        opened.append(Opened(chromium, result, tmp_path, **options))
        return opened[-1]

    yield open_one
    for each in opened:
        assert each.said == []
        assert each.asked == [each.address], "a page that works offline asks for nothing else"
        each.page.close()


def served() -> Profile:
    """A training step's tape with the segments and addresses that torch's allocator would have."""
    tape = CachingAllocator().replay(training().tape()).tape
    return Profile(tape=tape, capacity=GIB, outside=400 * MIB, device_name="Test card", notes=("A note.",))


def failed() -> Profile:
    """The same on another card, where 700 MiB more failed at the end."""
    tape = CachingAllocator().replay(training().tape()).tape
    failure = np.zeros(1, EVENT)
    failure["action"], failure["size"], failure["phase"] = Action.OOM, 700 * MIB, Phase.BACKWARD
    failure["module"], failure["allocation"] = HEAD, -1
    return Profile(tape=replace(tape, events=np.append(tape.events, failure), device="cuda:1"), capacity=GIB)


def test_the_page_opens_at_the_peak_with_every_byte_of_the_sum(open_page: Open) -> None:
    profile = served()

    page = open_page(profile)

    assert page.event == profile.timeline.peak_moment
    assert page.bytes_of("allocated") == profile.peak_allocated
    assert page.bytes_of("activations") == profile.peak.activations
    assert page.bytes_of("used on the device") == profile.peak.used
    assert page.bytes_of("the card") == GIB


@pytest.mark.parametrize("share", [0.02, 0.4, 0.97])
def test_a_click_pins_a_moment_and_all_below_is_of_it(open_page: Open, share: float) -> None:
    profile = served()
    page = open_page(profile)

    page.click_timeline(share)

    held = profile.timeline.breakdown_at(page.event)
    assert abs(page.event - share * len(profile.timeline)) < 2
    assert page.bytes_of("allocated") == held.allocated
    assert page.bytes_of("parameters") == held.parameters
    assert page.bytes_of("reserved") == held.reserved
    alive = profile.tape.allocations[profile.tape.alive_at(page.event - 1)]
    shown = page.page.locator(".tensors tbody tr:first-child").count()
    assert shown == len({(row["requested"], row["category"], row["phase"], row["module"] < 0) for row in alive})
    assert bool(page.page.locator("canvas.segments").count()) == bool(held.reserved)


def test_sizes_are_written_as_in_the_text(open_page: Open) -> None:
    sizes = [
        0,
        1023,
        1024,
        17_039_360,
        17_144_218,
        1_048_524,
        8_519_680,
        10_480_517,
        5 * GIB + GIB // 4,
        3 << 40,
        -17_039_360,
    ]

    page = open_page(served())

    assert page.page.evaluate("(sizes) => sizes.map(sizeText)", sizes) == [format_size(size) for size in sizes]


def test_of_many_events_under_one_pixel_the_highest_is_shown_and_pinned(open_page: Open) -> None:
    story = Story()
    for i in range(20_000):
        size = 64 * MIB if abs(i - 9_000) < 100 and i % 8 == 0 else MIB  # some of each pixel's twenty, around there
        story.free(story.alloc(size, Category.TEMPORARY), Phase.FORWARD)
    page = open_page(story.profile())
    page.page.locator("#timeline .chart").press("Home")

    page.click_timeline(2 * 9_000 / 40_001)

    assert 17_800 < page.event < 18_200
    assert page.bytes_of("temporaries") == 64 * MIB


def test_keys_move_the_pinned_moment_and_zoom(open_page: Open) -> None:
    profile = served()
    page = open_page(profile)
    chart = page.page.locator("#timeline .chart")
    chart.focus()
    last = len(profile.tape.events)

    page.page.keyboard.press("End")
    assert page.event == last
    page.page.keyboard.press("ArrowLeft")
    assert page.event == last - 1
    page.page.keyboard.press("Home")
    assert page.event == 0
    page.page.keyboard.press("p")
    assert page.event == profile.timeline.peak_moment
    page.page.keyboard.press("+")
    low, high = map(float, chart.get_attribute("data-range").split())
    assert low <= page.event <= high
    assert high - low == pytest.approx((last + 1) / 2)
    page.page.keyboard.press("0")
    assert chart.get_attribute("data-range") == f"0 {last + 1}"


def test_a_drag_zooms_and_the_buttons_step(open_page: Open) -> None:
    page = open_page(served())
    chart = page.page.locator("#timeline .chart")
    before = page.event
    box = page.page.locator("#timeline .u-over").bounding_box()

    page.page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 50)
    page.page.mouse.down()
    page.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 60, steps=4)
    page.page.mouse.up()

    low, high = map(float, chart.get_attribute("data-range").split())
    whole = len(served().timeline)
    assert low == pytest.approx(whole / 4, abs=1)
    assert high == pytest.approx(whole / 2, abs=1)
    assert page.event == before, "a drag pins nothing"
    page.page.get_by_label("The moment before").click()
    assert page.event == before - 1


def test_a_click_on_a_module_leaves_only_what_is_its_own(open_page: Open) -> None:
    page = open_page(served())

    page.page.get_by_role("treeitem", name="Net.head:").click()

    assert "Net.head" in page.text("#tensors-only")
    whats = page.page.locator(".tensors .what").all_inner_texts()
    assert whats
    assert all("Net.head" in what for what in whats)
    page.page.get_by_role("button", name="Show everything").click()
    assert page.page.locator(".tensors .what").count() > len(whats)


def test_arrows_go_through_the_modules(open_page: Open) -> None:
    page = open_page(served())
    keyboard = page.page.keyboard
    page.page.get_by_role("treeitem", name="Net:").focus()
    focused = "document.activeElement.getAttribute('aria-label')"

    for key, name in (("ArrowDown", "Net.blocks"), ("ArrowRight", "Net.head"), ("ArrowUp", "Net")):
        keyboard.press(key)
        assert page.page.evaluate(focused).startswith(f"{name}: ")
    keyboard.press("Enter")
    assert page.page.evaluate(focused).startswith("Net: "), "it is still there when all was drawn anew"
    assert "Net" in page.text("#tensors-only")


@pytest.mark.parametrize("measure", ["By activations", "By peak inside"])
def test_modules_are_shown_by_each_measure(open_page: Open, measure: str) -> None:
    page = open_page(served())

    page.page.get_by_role("button", name=measure).click()

    assert page.page.get_by_role("treeitem", name="Net.blocks.0.up:").count() == 1


def test_a_failure_is_the_moment_and_is_told(open_page: Open) -> None:
    profile = failed()

    page = open_page(profile)

    assert page.event == profile.out_of_memory[-1].event + 1
    assert "700.0 MiB" in page.text("#happened")
    assert "700.0 MiB were asked for, and failed" in page.text("#segments")


def test_hostile_names_are_texts(open_page: Open) -> None:
    page = open_page(hostile())

    assert page.page.evaluate("document.querySelectorAll('img, main script').length") == 0
    assert "<script>alert(1)</script>" in page.text("h1")
    name = page.page.get_by_role("treeitem").filter(has_text="<script>").first
    name.hover()
    assert "onerror=" in page.text("#tip")
    name.click()
    assert "onerror=" in page.text(".tensors .what >> nth=0")
    assert HOSTILE[:20] in page.page.title()


def test_several_devices_have_an_overview_and_a_tab_each(open_page: Open) -> None:
    page = open_page(replace(served(), others=(failed(), training().profile(device="cuda:2"))))

    assert page.page.get_by_role("tab").all_inner_texts() == ["Overview", "cuda:0", "cuda:1", "cuda:2"]
    assert "out\u00a0of\u00a0memory" in page.text("#overview tr:nth-child(2)")
    page.page.get_by_role("tab", name="cuda:1").click()
    assert not page.page.locator("#overview").is_visible()
    assert page.bytes_of("allocated") == failed().out_of_memory[-1].breakdown.allocated


def test_tensors_have_their_lines_and_open_their_stacks_and_lines_have_a_table(open_page: Open) -> None:
    story = Story()
    frames = [
        ("/x/site-packages/torch/nn/linear.py", 5, "forward"),
        ("/me/net.py", 42, "forward"),
        ("/me/a.py", 9, "f"),
    ]
    for _ in range(3):
        story.alloc(2 * MIB, Category.ACTIVATION, module=HEAD, stack=frames, operator="aten::mm (MmBackward0)")
    story.alloc(4 * MIB, Category.INPUT, Phase.OUTSIDE, stack=frames[2:])
    story.alloc(MIB, Category.OTHER, Phase.OUTSIDE)

    page = open_page(story.profile())

    rows = [row.split("\t") for row in page.page.locator(".lines tbody tr").all_inner_texts()]
    assert [row[0] for row in rows] == ["6.00 MiB", "4.00 MiB", "1.00 MiB"]
    assert [row[3] for row in rows] == ["net.py:42 in forward", "a.py:9 in f", "no known line, or one with less"]
    page.page.get_by_role("button", name="3 ×").click()
    source = page.page.locator(".tensors .member details.source >> nth=0")
    source.locator("summary").click()
    assert source.locator(".frame").all_inner_texts() == [
        "linear.py:5 in forward", "net.py:42 in forward", "a.py:9 in f"
    ]  # fmt: skip
    made = page.page.locator(".tensors td.what").all_inner_texts()
    assert [text.partition("\n")[0] for text in made[:2]] == [
        "outside of the phases", "in the forward of Net.head by aten::mm (MmBackward0)"
    ]  # fmt: skip


def test_without_stacks_there_are_no_lines(open_page: Open) -> None:
    page = open_page(served())

    assert not page.page.locator("#lines-section").is_visible()
    assert page.page.locator(".source").count() == 0


@pytest.mark.parametrize("device", ["cuda:0", "cpu"])
def test_a_recording_of_nothing_or_of_one_tensor_is_a_page_too(open_page: Open, device: str) -> None:
    story = Story()
    assert "Nothing was allocated" in open_page(story.profile(device=device)).text("#empty")
    story.alloc(MIB, Category.OTHER)

    page = open_page(story.profile(device=device))

    assert page.bytes_of("other") == MIB


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(open_page: Open, scheme: str) -> None:
    page = open_page(served(), beside=served(), viewport={"width": 360, "height": 740}, color_scheme=scheme)

    assert page.page.evaluate("document.documentElement.scrollWidth") <= 360
    wider = "[...document.querySelectorAll('.scroll')].filter((each) => each.scrollWidth > each.clientWidth).length"
    assert page.page.evaluate(wider) == 0, "no table is cut off at the side"
    assert page.page.evaluate("document.documentElement.dataset.theme") == scheme
    page.page.locator("#theme").click()
    assert page.page.evaluate("document.documentElement.dataset.theme") != scheme


def test_another_result_is_shown_beside_this_one(open_page: Open) -> None:
    profile, other = served(), Profile(tape=CachingAllocator().replay(training(bytes_per_number=8).tape()).tape)

    page = open_page(profile, beside=other)

    rows = page.page.locator("#beside tbody tr").all_inner_texts()
    cells = {name.strip(): figures for name, *figures in (row.split("\t") for row in rows)}
    assert page.text("#beside-title") == "Memory, before and after"
    assert cells["parameters"][:3] == ["15.0 MiB", "15.0 MiB", "equal"]
    sizes = [format_size(each.peak.activations) for each in (other, profile)]
    assert cells["activations"][:4] == [*sizes, "−96.0 MiB", "−50.0%"]
    assert page.page.locator("#beside tbody .swatch").count() == len(rows) - 2, "all but the two sums have a colour"
    page.page.locator("#as-text summary").click()
    assert page.text("#as-text pre").startswith("vramkit: memory of cuda:0, before and after")
    assert all("activations" in why for why in page.page.locator("#beside li").all_inner_texts())
    assert not open_page(profile).page.locator("#beside-section").is_visible()
