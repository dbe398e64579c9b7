"""The page of a plan: what it shows is what the plan has, whoever wrote the names, and it asks for nothing."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import Page, running_chromium

import vramkit
from vramkit import gpus
from vramkit.planning.changes import LeftOut
from vramkit.planning.variant import Effect
from vramkit.reports.html.columns import unpacked
from vramkit.sizes import format_size

MIB = 1 << 20
GIB = 1 << 30
HOSTILE = '</script></pre><script>alert(1)</script><img src=x onerror="alert(2)">\u2028%%data%%&lt;\x00\ud800'


def variant(
    name: str, reserved: int, *, fits: bool = True, effect: Effect = "same", operations: float | None = 1.0
) -> vramkit.Variant:
    return vramkit.Variant(
        changes=(name,) if name else (),
        peak_allocated=reserved - MIB,
        peak_reserved=reserved,
        used=reserved + 400 * MIB,
        fits=fits,
        effect=effect,
        passes=1,
        flops=None if operations is None else int(1000 * operations),
        operations=operations,
        transferred=None if operations is None else 4096,
        numbers=("none",),
        code=f"# {name}\nmodel.train()",
    )


def planned(name: str = "checkpoint all") -> vramkit.Plan:
    return vramkit.Plan(
        gpu=gpus.find("t4"),
        engine="virtual",
        batch_size=16,
        variants=(
            variant("", 20 * GIB, fits=False),
            variant(name, 12 * GIB, operations=1.25),
            variant("autocast", 13 * GIB, effect="precision"),
            variant("fused", 16 * GIB, fits=False, operations=None),
        ),
        left_out=(LeftOut(name=name, reason=f"{name} is a reason."),),
        notes=(f"{name} is a note.",),
        versions={"torch": name},
    )


def written(plan: vramkit.Plan, folder: Path) -> str:
    plan.to_html(folder / "plan.html")
    return (folder / "plan.html").read_text(encoding="utf-8")


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/octet-stream" id="data">([\w+/=]*)</script>', text)
    assert found is not None
    return unpacked(found[1])[0]


class Tags(HTMLParser):
    """The elements of a page, in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)


def test_the_page_has_every_figure_of_the_plan(tmp_path: Path) -> None:
    plan = planned()

    data = data_of(written(plan, tmp_path))

    rows = data["variants"]
    assert [each["reserved"] for each in rows] == [each.peak_reserved for each in plan.variants]
    assert [each["allocated"] for each in rows] == [each.peak_allocated for each in plan.variants]
    assert [each["operations"] for each in rows] == [each.operations for each in plan.variants]
    assert [data["effects"][each["effect"]] for each in rows] == [each.effect for each in plan.variants]
    assert [each["code"] for each in rows] == [each.code for each in plan.variants]
    assert [each["on_front"] for each in rows] == [each in plan.front for each in plan.variants]
    assert plan.variants[data["cheapest"]] is plan.cheapest
    assert data["room"] == plan.gpu.memory - plan.gpu.context
    assert data["left_out"] == [dataclasses.asdict(each) for each in plan.left_out]
    nothing = data_of(written(dataclasses.replace(plan, variants=plan.variants[:1]), tmp_path))
    assert (nothing["cheapest"], nothing["shown"]) == (None, 0)
    assert nothing["verdict"][0].startswith("Nothing that was run fits")


def test_names_make_no_elements(tmp_path: Path) -> None:
    text = written(planned(HOSTILE), tmp_path)

    assert Tags(text).tags == Tags(written(planned(), tmp_path)).tags
    assert "<img" not in text


def test_the_pages_script_parses(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("the page's script is parsed by node, which is not installed")
    (script,) = re.findall(r"<script>(.*?)</script>", written(planned(), tmp_path), re.DOTALL)
    (tmp_path / "plan.js").write_text(script, encoding="utf-8")

    done = subprocess.run([node, "--check", tmp_path / "plan.js"], capture_output=True, text=True)

    assert done.stderr == ""


def test_the_page_in_a_browser_draws_each_variant_and_shows_the_code_of_what_is_clicked(tmp_path: Path) -> None:
    plan = planned(HOSTILE)
    with running_chromium() as browser:
        opened = Page(browser, plan.to_html, tmp_path)
        page = opened.page
        points = [page.locator(f'circle[data-variant="{number}"]') for number in range(len(plan.variants))]

        assert page.locator("circle.point").count() == page.locator(".variants tbody tr").count() == len(plan.variants)
        assert page.locator("circle.misfit").count() == sum(not each.fits for each in plan.variants)
        assert page.locator("tr.chosen td").first.inner_text() == ">"
        assert page.locator("line.room").count() == 1
        points[2].click()
        assert opened.text("#code pre") == plan.variants[2].code
        assert (
            page.locator("tr.chosen").inner_text().split()[1:3] == format_size(plan.variants[2].peak_reserved).split()
        )
        page.locator(".variants button").nth(3).click()
        assert opened.text("#code pre") == plan.variants[3].code
        points[0].hover()
        assert format_size(plan.plain.peak_reserved) in opened.text("#tip")
        page.locator("#theme").click()
        assert opened.text("#code pre") == plan.variants[3].code
        heights = [each.bounding_box()["y"] for each in points]
        by_height = sorted(range(len(heights)), key=lambda number: -heights[number])
        assert by_height == sorted(range(len(heights)), key=lambda number: plan.variants[number].peak_reserved)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        lefts = [each.bounding_box()["x"] for each in points]
        by_cost = sorted(range(len(lefts)), key=lambda number: plan.variants[number].cost)
        assert sorted(range(len(lefts)), key=lambda number: lefts[number]) == by_cost
        assert opened.said == []
        assert opened.asked == [opened.address]


@pytest.mark.parametrize("operations", [None, 1.0])
def test_a_plan_of_one_variant_is_a_page_too(tmp_path: Path, operations: float | None) -> None:
    plan = dataclasses.replace(planned(), variants=(variant("", GIB, operations=operations),), notes=(), left_out=())
    with running_chromium() as browser:
        opened = Page(browser, plan.to_html, tmp_path)

        assert opened.page.locator("circle.point").count() == 1
        assert "above the picture" in opened.text("#scatter")
        assert opened.said == []
