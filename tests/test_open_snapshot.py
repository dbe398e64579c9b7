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
from vramkit.events import Category


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
def test_allocations_are_named_by_the_line_that_made_them(snapshot: Path) -> None:
    profile = vramkit.open_snapshot(snapshot)

    named = {row["name"] for row in profile.to_records() if row["requested"] == 128 * 256 * 4 and row["born"] >= 0}
    assert any(name.startswith(f"{Path(__file__).name}:") for name in named if name)


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


@pytest.mark.parametrize("entry", [{"action": "alloc"}, {"action": "alloc", "addr": "x", "size": 1, "stream": 0}])
def test_entries_that_lack_something_are_refused(tmp_path: Path, entry: dict[str, object]) -> None:
    path = tmp_path / "odd.pickle"
    path.write_bytes(pickle.dumps({"segments": [], "device_traces": [[entry]]}))

    with pytest.raises(vramkit.SnapshotError):
        vramkit.open_snapshot(path)
