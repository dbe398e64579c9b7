"""Snapshots that torch wrote, opened as profiles."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import vramkit
from vramkit.tape.events import Category


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A training step with stacks, recorded by torch, whose start the profile has to work out."""
    torch._C._cuda_clearCublasWorkspaces()
    model = nn.Linear(256, 256).cuda()
    model(torch.zeros(64, 256, device="cuda")).sum().backward()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.memory._record_memory_history(stacks="python")
    try:
        model.zero_grad()
        model(torch.zeros(128, 256, device="cuda")).sum().backward()
        path = tmp_path / "step.pickle"
        torch.cuda.memory._dump_snapshot(str(path))
    finally:
        torch.cuda.memory._record_memory_history(None)
    return path


@pytest.mark.virtual_gpu
def test_a_snapshots_figures_are_torchs_own(snapshot: Path) -> None:
    profile = vramkit.open_snapshot(snapshot)

    assert profile.peak_allocated == torch.cuda.max_memory_allocated()
    assert profile.peak_reserved == torch.cuda.max_memory_reserved()
    assert profile.final.workspace == 2 * torch._C._cuda_getCublasWorkspaceSize()
    assert set(profile.tape.allocations["category"]) == {Category.OTHER, Category.WORKSPACE}


@pytest.mark.virtual_gpu
def test_allocations_have_the_line_that_made_them(snapshot: Path) -> None:
    profile = vramkit.open_snapshot(snapshot)

    lines = {row["line"] for row in profile.to_records() if row["requested"] == 128 * 256 * 4 and row["born"] >= 0}
    source = Path(__file__).read_text().splitlines()
    number = 1 + next(i for i, line in enumerate(source) if "model(torch.zeros(128, 256" in line)
    assert lines - {None} == {f"{Path(__file__).name}:{number} in snapshot"}


@pytest.mark.virtual_gpu
def test_the_command_line_shows_a_snapshot(snapshot: Path) -> None:
    shown = subprocess.run([sys.executable, "-m", "vramkit", "view", str(snapshot)], capture_output=True, text=True)

    assert shown.returncode == 0, shown.stderr
    assert "A snapshot says where memory was" in " ".join(shown.stdout.split())


@pytest.mark.virtual_gpu
def test_a_snapshot_without_history_is_one_moment(tmp_path: Path) -> None:
    gc.collect()
    held = torch.zeros(1000, device="cuda")
    path = tmp_path / "moment.pickle"
    torch.cuda.memory._dump_snapshot(str(path))

    profile = vramkit.open_snapshot(path)

    assert profile.peak_allocated == torch.cuda.memory_allocated() >= held.nbytes
    assert any("one moment" in note for note in profile.notes)


def test_a_snapshot_of_nothing_says_how_to_make_one(tmp_path: Path) -> None:
    path = tmp_path / "empty.pickle"
    path.write_bytes(pickle.dumps({"segments": [], "device_traces": []}))

    with pytest.raises(vramkit.SnapshotError, match=r"no memory and no history.*_record_memory_history"):
        vramkit.open_snapshot(path)


def entry(**different: object) -> dict[str, object]:
    usual = {"action": "alloc", "addr": 0x7F0000000000, "size": 5, "stream": 0, "time_us": 1, "frames": []}
    return usual | different


def segment(**different: object) -> dict[str, object]:
    start, size = 0x7F0000000000, 2 << 20
    blocks = [
        {"address": start, "size": 512, "requested_size": 5, "state": "active_allocated"},
        {"address": start + 512, "size": size - 512, "requested_size": 0, "state": "inactive"},
    ]
    usual = {"address": start, "total_size": size, "stream": 0, "segment_type": "small", "blocks": blocks}
    return usual | different


def written(tmp_path: Path, entries: list[object], segments: list[object]) -> Path:
    path = tmp_path / "made.pickle"
    path.write_bytes(pickle.dumps({"segments": segments, "device_traces": [entries]}))
    return path


@pytest.mark.parametrize("value", [1 << 63, 1 << 80])
@pytest.mark.parametrize("key", ["size", "stream", "time_us"])
def test_numbers_too_large_for_a_table_are_refused(tmp_path: Path, key: str, value: int) -> None:
    path = written(tmp_path, [entry(**{key: value})], [segment()])

    with pytest.raises(vramkit.SnapshotError, match="can't be"):
        vramkit.open_snapshot(path)


@pytest.mark.parametrize("size", [-5, True, 1.9])
def test_sizes_that_can_not_be_are_refused(tmp_path: Path, size: object) -> None:
    blocks = [{"address": 0x7F0000000000, "size": 2 << 20, "requested_size": size, "state": "active_allocated"}]
    for path in (
        written(tmp_path, [entry(size=size)], [segment()]),
        written(tmp_path, [], [segment(total_size=size)]),
        written(tmp_path, [], [segment(blocks=blocks)]),
    ):
        with pytest.raises(vramkit.SnapshotError, match=rf"the (\w+_)?size can't be {size}"):
            vramkit.open_snapshot(path)


@pytest.mark.parametrize("number", [-5, True, 1.7, "1", 1 << 31, 1 << 40])
def test_private_pools_that_can_not_be_are_refused(tmp_path: Path, number: object) -> None:
    for path in (
        written(tmp_path, [entry(pool_id=(0, number))], [segment()]),
        written(tmp_path, [], [segment(segment_pool_id=(number, 0))]),
    ):
        with pytest.raises(vramkit.SnapshotError, match=r"private pool.* can't be"):
            vramkit.open_snapshot(path)


def test_a_private_pool_has_two_numbers(tmp_path: Path) -> None:
    with pytest.raises(vramkit.SnapshotError, match="can't be"):
        vramkit.open_snapshot(written(tmp_path, [entry(pool_id=(1,))], [segment()]))


def test_what_a_terminal_would_act_on_is_shown_escaped(tmp_path: Path) -> None:
    frames = [{"filename": "a.py", "line": 1, "name": "\x1b]0;owned\x07\x1b[31m\nfake\u202e"}]

    shown = vramkit.open_snapshot(written(tmp_path, [entry(frames=frames)], [segment()])).report()

    assert r"a.py:1 in \x1b]0;owned\x07\x1b[31m\nfake\u202e" in shown
    assert all(line.isprintable() for line in shown.splitlines())


def test_a_history_without_pools_of_memory_in_pools_says_so(tmp_path: Path) -> None:
    pooled = segment(segment_pool_id=(0, 1))

    old = vramkit.open_snapshot(written(tmp_path, [entry()], [pooled]))
    new = vramkit.open_snapshot(written(tmp_path, [entry(pool_id=(0, 1))], [pooled]))

    assert any("private pools" in note for note in old.notes)
    assert not any("private pools" in note for note in new.notes)
    assert new.tape.allocations["pool"].tolist() == [[0, 1]]


@pytest.mark.parametrize("entry", [{"action": "alloc"}, {"action": "alloc", "addr": "x", "size": 1, "stream": 0}])
def test_entries_that_lack_something_are_refused(tmp_path: Path, entry: dict[str, object]) -> None:
    path = tmp_path / "odd.pickle"
    path.write_bytes(pickle.dumps({"segments": [], "device_traces": [[entry]]}))

    with pytest.raises(vramkit.SnapshotError):
        vramkit.open_snapshot(path)
