"""pandas' table, matplotlib's figure and the notebook's fragment, on synthetic tapes."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_profiles import PROFILES, three_devices
from hostile import TEXT
from long_tapes import long_tape
from told_profiles import MIB, training

from vramkit import UsageError
from vramkit.exports.pictures import CACHED, COLORS, OUTSIDE, SLACK, picture
from vramkit.results.profile import Profile
from vramkit.sizes import format_size
from vramkit.tape.events import Category

_TAGS = {
    "div", "p", "b", "svg", "title", "text", "polygon", "polyline", "line", "table", "tr", "td", "span", "details",
    "summary", "pre",
}  # fmt: skip

# -- pandas ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
def test_the_table_is_the_records(name: str) -> None:
    pandas = pytest.importorskip("pandas")
    profile = PROFILES[name]

    table = profile.to_frame()

    records = profile.to_records()
    columns = table.astype(object).where(table.notna(), None)
    assert columns.to_dict("records") == records
    if records:
        assert list(table.columns) == [*records[0]]
    assert isinstance(table, pandas.DataFrame)


def test_the_tables_bytes_are_those_of_the_categories() -> None:
    pytest.importorskip("pandas")
    profile = training().profile()

    sums = profile.to_frame().groupby("category", observed=False)["requested"].sum()

    table = profile.tape.allocations
    assert sums["GRADIENT"] == table["requested"][table["category"] == Category.GRADIENT].sum()


@pytest.mark.parametrize(("export", "package"), [("to_frame", "pandas"), ("plot", "matplotlib")])
def test_what_is_not_installed_is_told_with_its_extra(
    export: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*sys.modules]:
        if name.partition(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    extra = {"pandas": "pandas", "matplotlib": "plot"}[package]

    with pytest.raises(UsageError, match=re.escape(f'pip install "vramkit[{extra}]"')):
        getattr(training().profile(), export)()


# -- the layers of a picture -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
def test_layers_sum_to_allocated_and_keep_every_peak(name: str) -> None:
    for one in PROFILES[name].each_device():
        shown = picture(one, 100)

        total = sum((layer.sizes for layer in shown.layers), np.zeros(len(shown.rows), np.int64))
        assert (total == one.timeline.allocated[shown.rows]).all()
        assert total.max() == one.peak_allocated
        assert shown.reserved.max() == one.peak_reserved


def test_a_long_tape_is_thinned_and_no_layer_loses_its_peak() -> None:
    profile = Profile(tape=long_tape(20_000))

    shown = picture(profile, 500)

    assert len(shown.rows) <= 500
    highest = profile.timeline.by_category.max(axis=0)
    assert [layer.sizes.max() for layer in shown.layers[: len(Category)]] == highest.tolist()


def test_colors_are_those_of_the_web_page() -> None:
    css = (files("vramkit.reports.html") / "assets" / "page.css").read_text()

    light = dict(re.findall(r"--(category-\d+|slack|outside|free): (#\w+);", css)[::-1])  # the first of each stays

    assert {each: light[f"category-{each.value}"] for each in Category} == COLORS
    assert (light["slack"], light["outside"], light["free"]) == (SLACK, OUTSIDE, CACHED)


# -- matplotlib --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
def test_a_figure_is_drawn_of_every_device(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    profile = PROFILES[name]

    figure = profile.plot(tmp_path / "memory.svg")

    devices = [*profile.each_device()]
    assert len(figure.axes) == 2 * len(devices)
    for one, axes in zip(devices, figure.axes[::2], strict=True):
        assert f"at most {format_size(one.peak_allocated)} allocated" in axes.get_title(loc="left")
        assert axes.get_ylim()[1] >= one.peak_reserved
    assert ET.parse(tmp_path / "memory.svg").getroot().tag.endswith("svg")


def test_the_figures_bar_is_the_bridge() -> None:
    pytest.importorskip("matplotlib")
    profile = training().profile(reserved=400 * MIB, outside=100 * MIB)

    bar = profile.plot().axes[1].containers

    assert sum(part[0].get_height() for part in bar) == profile.peak.used


def test_a_kind_of_file_that_matplotlib_does_not_write_is_told(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")

    with pytest.raises(UsageError, match=r"Give it one of these endings: .*png"):
        training().profile().plot(tmp_path / "memory.docx")
    assert not [*tmp_path.iterdir()]


# -- the notebook ------------------------------------------------------------------------------------------------------


def tree(profile: Profile) -> ET.Element:
    return ET.fromstring(profile._repr_html_())


def cells(root: ET.Element) -> list[list[str]]:
    return [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]


@pytest.mark.parametrize("name", PROFILES)
def test_the_fragment_is_well_formed_and_runs_nothing(name: str) -> None:
    root = tree(PROFILES[name])

    devices = len([*PROFILES[name].each_device()])
    assert len([*root.iter("svg")]) == len([*root.iter("table")]) == devices
    tags = {each.tag for each in root.iter()}
    assert tags <= _TAGS
    names = {name for each in root.iter() for name in each.attrib}
    assert not {name for name in names if name.startswith("on") or name in ("href", "src")}


def test_the_fragment_has_the_reports_numbers() -> None:
    profile = training().profile(reserved=400 * MIB, outside=100 * MIB)

    rows = {name.strip("\u25a0= "): size for name, _, size in cells(tree(profile))}

    report = {line[4:32].strip(): line[44:64].strip() for line in profile.report().splitlines()}
    for name in ("activations", "parameters", "inputs", "allocated", "reserved", "used on the device"):
        assert rows[name] == report[name]
    assert rows["used on the device"] == f"{profile.peak.used:,} B"


def test_names_are_texts_in_the_fragment() -> None:
    html = PROFILES["hostile"]._repr_html_()

    assert TEXT not in html
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_a_long_tape_makes_a_small_fragment() -> None:
    assert len(Profile(tape=long_tape(20_000))._repr_html_()) < 33_000 * len(Category)  # it has a layer for each


def test_several_devices_are_shown_one_below_another() -> None:
    profile: Any = three_devices()

    heads = ["".join(each.itertext()) for each in tree(profile).iter("p")]

    assert [head.split(" (")[0].split(":")[0] for head in heads] == ["cuda", "cuda", "cuda"]
    assert heads[0].startswith("cuda:0 (A card): ")
    assert heads[1].startswith("cuda:1: ")
