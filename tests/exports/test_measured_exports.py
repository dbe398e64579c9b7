"""Every export of a profile that was measured on the CPU: the figures are the profile's."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import vramkit
from vramkit.tape.events import Category


@pytest.fixture(scope="module")
def profile() -> vramkit.Profile:
    """Two steps of a small network."""
    model = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 4))
    optimizer = torch.optim.Adam(model.parameters())
    with vramkit.profile(model, optimizer, device="cpu") as prof:
        for _ in range(2):
            model(torch.zeros(32, 256)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return prof.result


def test_the_trace_has_its_peak_its_steps_and_its_modules(profile: vramkit.Profile, tmp_path: Path) -> None:
    profile.to_perfetto(tmp_path / "trace.json")

    events = json.loads((tmp_path / "trace.json").read_bytes())["traceEvents"]
    values = [event["args"]["bytes"] for event in events if event["ph"] == "C" and event["name"] == "allocated"]
    assert max(values) == profile.peak_allocated
    slices = [event["name"] for event in events if event["ph"] == "X"]
    assert {"step 1", "step 2", "forward", "backward", "optimizer step", "Sequential", "Sequential.0"} <= {*slices}


def test_the_snapshot_has_every_category_and_its_end(profile: vramkit.Profile, tmp_path: Path) -> None:
    profile.to_memory_viz(tmp_path / "snapshot.pickle")

    snapshot = pickle.loads((tmp_path / "snapshot.pickle").read_bytes())
    categories = {entry.get("category") for entry in snapshot["device_traces"][0]}
    assert {"gradients", "optimizer state", "inputs", "activations"} <= categories
    assert sum(each["allocated_size"] for each in snapshot["segments"]) == profile.final.allocated


def test_the_table_sums_to_the_peak(profile: vramkit.Profile) -> None:
    pytest.importorskip("pandas")
    table, peak = profile.to_frame(), profile.tape.peak_event

    alive = table[(table.born <= peak) & (table.died.isna() | (table.died > peak))]

    sums = alive.groupby("category", observed=False)["requested"].sum()
    assert {each: sums[each.name] for each in Category} == {each: profile.peak.of(each) for each in Category}


def test_the_pictures_show_the_peak(profile: vramkit.Profile, tmp_path: Path) -> None:
    assert f"{profile.peak.allocated:,} B" in profile._repr_html_()
    pytest.importorskip("matplotlib")

    figure = profile.plot(tmp_path / "memory.png")

    highest = max(part[0].get_height() for part in figure.axes[1].containers)
    assert highest == max(profile.peak.of(each) for each in Category)
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")
