"""The snapshot for torch's own viewer: what it holds, that vramkit reads it again, and that torch's tools open it."""

from __future__ import annotations

import pickle
import pickletools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_profiles import PROFILES
from hypothesis import given
from long_tapes import long_tape
from strategies import tapes
from told_profiles import MIB, MODULES, Story, training

import vramkit
from vramkit.exports.held import held_at_end
from vramkit.reports.sentences import CATEGORY_NAMES
from vramkit.results.profile import Profile
from vramkit.tape.events import Action, Category, Tape

KNOWN = {
    "APPEND", "APPENDS", "BINFLOAT", "BINGET", "BININT", "BININT1", "BININT2", "BINPUT", "BINUNICODE", "DICT",
    "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "FRAME", "LIST", "LONG1", "LONG_BINGET", "LONG_BINPUT", "MARK",
    "MEMOIZE", "NEWFALSE", "NEWTRUE", "NONE", "PROTO", "SETITEM", "SETITEMS", "SHORT_BINUNICODE", "STOP", "TUPLE",
    "TUPLE1", "TUPLE2", "TUPLE3",
}  # fmt: skip
"""The opcodes that `unpickle` of torch's MemoryViz.js reads; it raises at any other."""


def written(profile: Profile, folder: Path) -> dict[str, Any]:
    profile.to_memory_viz(folder / "snapshot.pickle")
    return pickle.loads((folder / "snapshot.pickle").read_bytes())


@pytest.mark.parametrize("name", PROFILES)
def test_entries_are_the_events_and_say_what_each_allocation_is_for(name: str, tmp_path: Path) -> None:
    profile = PROFILES[name]

    snapshot = written(profile, tmp_path)

    for number, one in enumerate(profile.each_device()):
        trace, table = snapshot["device_traces"][number], one.tape.allocations
        actions = Counter(entry["action"] for entry in trace)
        assert [entry["category"] for entry in trace[-1:]] == ["unknown"] * bool(len(one.tape.events))
        assert actions["alloc"] == (one.tape.events["action"] == Action.ALLOC).sum()
        assert (
            actions["free_requested"] == actions["free_completed"] == (one.tape.events["action"] == Action.FREE).sum()
        )
        assert actions["annotate"] == (table["born"] < 0).sum()
        born = table[table["born"] >= 0]
        allocs = [entry for entry in trace if entry["action"] == "alloc"]
        assert [entry["category"] for entry in allocs] == [CATEGORY_NAMES[Category(code)] for code in born["category"]]
        assert [entry["size"] for entry in allocs] == born["requested"].tolist()
        assert all(entry["user_metadata"].startswith(entry["category"]) for entry in allocs)


@pytest.mark.parametrize("name", [name for name in PROFILES if not name.startswith("empty")])
def test_vramkit_reads_the_same_peak_out_of_it(name: str, tmp_path: Path) -> None:
    profile = PROFILES[name]
    written(profile, tmp_path)

    again = vramkit.open_snapshot(tmp_path / "snapshot.pickle")

    assert again.peak.requested == profile.peak.requested
    assert again.final.requested == profile.final.requested


@given(tapes())
def test_segments_cover_exactly_what_is_alive_at_the_end(tape: Tape) -> None:
    segments = held_at_end(tape)

    alive = [block for each in segments for block in each.blocks if block.state == "active_allocated"]
    table = tape.allocations[tape.alive_at(len(tape.events) - 1)]
    assert sorted(block.size for block in alive) == sorted(table["block"].tolist())
    ends = 0
    for each in segments:
        assert each.address >= ends
        ends = each.address + each.size
        assert sum(block.size for block in each.blocks) == each.size


def test_an_allocation_of_which_one_stands_at_anothers_place_gets_a_place_of_its_own() -> None:
    tape = training().tape(reserved=400 * MIB)
    tape.allocations["address"] = 4096

    segments = held_at_end(tape)

    assert len({each.address for each in segments}) == len(segments) == tape.alive_at(len(tape.events) - 1).sum()


def test_modules_are_the_stack_and_names_its_first_frame(tmp_path: Path) -> None:
    snapshot = written(training().profile(), tmp_path)

    allocs = [entry for entry in snapshot["device_traces"][0] if entry["action"] == "alloc"]
    weight = allocs[0]
    assert weight["user_metadata"] == "parameters | Net.blocks.0.up.weight | made between the phases"
    assert [(frame["filename"], frame["name"]) for frame in weight["frames"]] == [
        ("parameters", "Net.blocks.0.up.weight"),
        ("Net.blocks.0.up", "Linear"),
        ("Net.blocks.0", "Block"),
        ("Net.blocks", "ModuleList"),
        ("Net", "Net"),
    ]
    assert "activations | Net.blocks.0 | made in the forward" in [entry["user_metadata"] for entry in allocs]


def test_of_a_recording_with_stacks_these_follow_and_are_read_again(tmp_path: Path) -> None:
    story = Story()
    frames = [
        ("/x/site-packages/torch/nn/linear.py", 5, "forward"),
        ("/me/net.py", 42, "forward"),
        ("/me/a.py", 9, "f"),
    ]
    story.alloc(MIB, Category.ACTIVATION, module=2, stack=frames, operator="aten::mm")
    story.alloc(MIB, Category.ACTIVATION, module=2)
    profile = story.profile(reserved=8 * MIB)

    snapshot = written(profile, tmp_path)

    first, second = (entry for entry in snapshot["device_traces"][0] if entry["action"] == "alloc")
    assert [(frame["filename"], frame["line"], frame["name"]) for frame in first["frames"]] == [
        ("activations", 0, "made in the forward"),
        ("operator", 0, "aten::mm"),
        ("torch/nn/linear.py", 5, "forward"),
        *frames[1:],
    ]
    assert first["user_metadata"].endswith(" | aten::mm")
    assert second["frames"][1]["filename"] == MODULES[2].name
    again = vramkit.open_snapshot(tmp_path / "snapshot.pickle")
    assert again.tape.lines == profile.tape.lines == ["net.py:42 in forward", None]


def test_a_long_tape_is_written_whole(tmp_path: Path) -> None:
    tape = long_tape(20_000)

    [trace] = written(Profile(tape=tape), tmp_path)["device_traces"]

    assert len(trace) == 30_001  # every free is asked for, and completed; and the end
    sizes = np.array([entry["size"] for entry in trace if entry["action"] == "alloc"])
    assert (sizes == tape.allocations["requested"]).all()


@pytest.mark.parametrize("name", PROFILES)
def test_it_is_made_of_what_the_pages_reader_knows(name: str, tmp_path: Path) -> None:
    written(PROFILES[name], tmp_path)

    opcodes = {opcode.name for opcode, _, _ in pickletools.genops((tmp_path / "snapshot.pickle").read_bytes())}

    assert opcodes <= KNOWN


@pytest.mark.parametrize("name", PROFILES)
def test_torchs_own_tools_open_it(name: str, tmp_path: Path) -> None:
    viz = pytest.importorskip("torch.cuda._memory_viz")
    profile = PROFILES[name]
    snapshot = written(profile, tmp_path)

    summary = viz.segsum(snapshot)
    text = viz.trace(snapshot)
    lines = viz.memory(snapshot, format_flamegraph=lambda lines: lines).splitlines()
    pages = [viz.trace_plot(snapshot), viz.trace_plot(snapshot, plot_segments=True), viz.segment_plot(snapshot)]

    assert f"segments: {len(snapshot['segments'])}\n" in summary
    assert all(page.count("snapshot.pickle") == 1 for page in pages)
    alive = [one.tape.alive_at(len(one.tape.events) - 1) for one in profile.each_device()]
    assert sum("active_allocated" in line for line in lines) == sum(int(each.sum()) for each in alive)
    entries = sum(map(len, snapshot["device_traces"]))
    assert sum(int(line.split()[0]) for line in text.splitlines() if line.endswith(" entries")) == entries


@pytest.mark.virtual_gpu
def test_a_measured_profile_is_the_same_when_it_is_read_again(tmp_path: Path) -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 8)).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    with vramkit.profile(model, optimizer) as prof:
        for _ in range(2):
            model(torch.zeros(64, 512, device="cuda")).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    profile = prof.result

    profile.to_memory_viz(tmp_path / "snapshot.pickle")

    again = vramkit.open_snapshot(tmp_path / "snapshot.pickle")
    assert again.tape.events["action"].tolist() == profile.tape.events["action"].tolist()
    assert again.tape.allocated.tolist() == profile.tape.allocated.tolist()
    assert again.tape.reserved.tolist() == profile.tape.reserved.tolist()
    labels = [
        entry.get("user_metadata", "")
        for entry in pickle.loads((tmp_path / "snapshot.pickle").read_bytes())["device_traces"][0]
    ]
    assert any(label.startswith("optimizer state | exp_avg of Sequential.0.weight") for label in labels)
