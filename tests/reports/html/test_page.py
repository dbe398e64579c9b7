"""The HTML report as a file: nothing in it comes from elsewhere, and no name in a result becomes a part of the page."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from told_profiles import MIB, MODULES, training

from vramkit.reports.html.page import page
from vramkit.reports.html.payload import payload
from vramkit.results.profile import Profile
from vramkit.tape.events import Category, Module

HOSTILE = '</script></pre><script>alert(1)</script><img src=x onerror="alert(2)">\u2028\u2029%%data%%&lt;\x00\ud800'


def hostile() -> Profile:
    """A profile whose every text is written by someone who wants to run code."""
    modules = (*(replace(each, kind=HOSTILE) for each in MODULES), Module(name=HOSTILE, kind="Net"))
    story = training()
    story.alloc(
        640 * MIB,
        Category.ACTIVATION,
        module=len(MODULES),
        name=f"{HOSTILE}.weight",
        stack=[(f"{HOSTILE}.py", 1, HOSTILE)],
        operator=HOSTILE,
    )
    return story.profile(
        modules=modules,
        device_name=HOSTILE,
        notes=(HOSTILE,),
        versions={HOSTILE: HOSTILE},
        alloc_conf=HOSTILE,
        capacity=1 << 30,
    )


def written(profile: Profile) -> str:
    return page(profile, profile.report())


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]


def tags(text: str) -> _Tags:
    found = _Tags()
    found.feed(text)
    return found


def test_names_make_no_elements() -> None:
    assert tags(written(hostile())).tags == tags(written(training().profile())).tags


def test_names_are_in_the_data_and_in_the_escaped_text_only() -> None:
    text = written(hostile())

    before, data, after = re.split(r'<script type="application/octet-stream" id="data">(\w[\w+/=]*)</script>', text)
    assert "alert" not in after + data
    assert "onerror=&quot;alert" in before
    assert "<img" not in before


def test_the_page_has_the_report_as_text() -> None:
    text = written(training().profile())

    found = re.search(r"<pre>(.*)</pre>", text, re.DOTALL)
    assert found is not None
    assert found[1].replace("&quot;", '"').replace("&gt;", ">") == training().profile().report()


def test_nothing_is_loaded_and_only_its_own_scripts_may_run() -> None:
    text = written(training().profile())

    assert set(tags(text).outside) <= {"data:,", "#as-text"}
    policy = re.search(r'content="(default-src [^"]*)"', text)
    assert policy is not None
    allowed = re.findall(r"'sha256-([^']*)'", policy[1])
    parts = re.findall(r"<style>(.*?)</style>", text, re.DOTALL) + re.findall(
        r"<script>(.*?)</script>", text, re.DOTALL
    )
    hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts]
    assert sorted(allowed) == sorted(hashes)
    assert "unsafe" not in policy[1]


def test_the_same_result_makes_the_same_page() -> None:
    assert written(training().profile()) == written(training().profile())


def test_to_html_writes_the_page_and_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    training().profile().to_html(path)

    assert path.read_text(encoding="utf-8") == written(training().profile())


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        training().profile().to_html(tmp_path / "nowhere" / "report.html")


def test_every_part_of_the_sum_and_every_phase_has_a_colour() -> None:
    css = Path(str(page.__code__.co_filename)).parent.joinpath("assets", "page.css").read_text(encoding="utf-8")
    header, _ = payload(training().profile())

    light, dark = css.split(':root[data-theme="dark"] {', 1)
    for theme in (light, dark.split("}", 1)[0]):
        for number in range(len(header["categories"])):
            assert f"--category-{number}:" in theme
        for number in range(1, len(header["phases"])):
            assert f"--phase-{number}:" in theme
            assert f"--shade-{number}:" in theme


def test_the_pages_script_parses(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("the page's script is parsed by node, which is not installed")
    script = re.findall(r"<script>(.*?)</script>", written(training().profile()), re.DOTALL)[-1]
    (tmp_path / "page.js").write_text(script, encoding="utf-8")

    done = subprocess.run([node, "--check", tmp_path / "page.js"], capture_output=True, text=True)

    assert done.stderr == ""
