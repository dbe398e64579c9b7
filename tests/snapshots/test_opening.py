"""Snapshots that torch wrote, opened as profiles."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safe_results import assert_can_be_shown
from torch import nn
from workloads import workspace_size

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
    assert set(profile.tape.allocations["category"]) == {
        Category.OTHER
    }  # without frames of C++ nothing tells a workspace
    if workspace_size() == 8_519_680:
        assert any(note.startswith("2 allocations of 8,519,680 B") for note in profile.notes)


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


def test_a_history_without_pools_says_so_where_what_is_left_does_not_tell_them(tmp_path: Path) -> None:
    pooled = segment(segment_pool_id=(0, 1))
    between = [entry(action=f"segment_{what}", addr=1 << 40, size=2 << 20) for what in ("alloc", "free")]

    old = vramkit.open_snapshot(written(tmp_path, [entry()], [pooled]))
    new = vramkit.open_snapshot(written(tmp_path, [entry(pool_id=(0, 1))], [pooled]))
    doubtful = vramkit.open_snapshot(written(tmp_path, [*between, entry()], [pooled]))

    told = [any("private pools" in note for note in each.notes) for each in (old, new, doubtful)]
    assert told == [False, False, True]
    assert [each.tape.allocations["pool"].tolist() for each in (old, new, doubtful)] == [[[0, 1]]] * 3


@pytest.mark.parametrize("entry", [{"action": "alloc"}, {"action": "alloc", "addr": "x", "size": 1, "stream": 0}])
def test_entries_that_lack_something_are_refused(tmp_path: Path, entry: dict[str, object]) -> None:
    path = tmp_path / "odd.pickle"
    path.write_bytes(pickle.dumps({"segments": [], "device_traces": [[entry]]}))

    with pytest.raises(vramkit.SnapshotError):
        vramkit.open_snapshot(path)


# -- histories that don't lead to what is held ------------------------------------------------------------------------

START = 0x7F0000000000
OTHER = START + (64 << 20)  # of no segment at the end


def steps(*named: tuple[str, int, int]) -> list[object]:
    """Entries of (action, address, size)."""
    return [
        entry(action=action, addr=address, size=size, time_us=time)
        for time, (action, address, size) in enumerate(named)
    ]


WHOLE = (
    ("segment_alloc", START, 2 << 20),
    ("alloc", START, 5),
    ("alloc", START + 512, 1000),
    ("free_requested", START + 512, 1000),
    ("free_completed", START + 512, 1000),
)


def test_a_history_that_leads_to_what_is_held_is_whole(tmp_path: Path) -> None:
    profile = vramkit.open_snapshot(written(tmp_path, steps(*WHOLE), [segment()]))

    assert (profile.peak_allocated, profile.final.allocated, profile.is_window) == (512 + 1024, 512, False)
    assert not any("event" in note for note in profile.notes)


@pytest.mark.parametrize(
    "wrong",
    [
        ("free_completed", START, 5),  # is in use afterwards
        ("free_requested", START + 4096, 5),
        ("alloc", START + 4096, 5),
        ("alloc", OTHER, 5),
        ("segment_alloc", OTHER, 2 << 20),
        ("segment_free", START, 2 << 20),
        ("segment_map", OTHER, 2 << 20),
    ],
)
@pytest.mark.parametrize("place", range(len(WHOLE) + 1))
def test_an_event_that_can_not_be_undone_costs_a_note_and_what_came_before(
    tmp_path: Path, wrong: tuple[str, int, int], place: int
) -> None:
    entries = [*WHOLE[:place], wrong, *WHOLE[place:]]

    profile = vramkit.open_snapshot(written(tmp_path, steps(*entries), [segment()]))

    left = len(profile.tape.events)
    assert (profile.final.allocated, profile.final.reserved) == (512, 2 << 20)
    assert left >= len(WHOLE) - place  # what came after it stays
    assert any("can't be undone" in note for note in profile.notes) == (left < len(entries))
    assert profile.is_window or left == len(entries)
    assert_can_be_shown(profile)


def test_a_history_that_begins_with_nothing_is_shown_though_its_segments_are_gone(tmp_path: Path) -> None:
    profile = vramkit.open_snapshot(written(tmp_path, steps(*WHOLE), []))

    assert (profile.peak_allocated, profile.final.allocated, profile.is_window) == (512 + 1024, 512, False)
    assert any("no segment of this device" in note for note in profile.notes)


def test_a_block_that_was_in_no_segment_costs_a_note(tmp_path: Path) -> None:
    lost = steps(("free_requested", OTHER, 5), ("free_completed", OTHER, 5), *WHOLE)

    profile = vramkit.open_snapshot(written(tmp_path, lost, [segment()]))

    assert len(profile.tape.events) == len(WHOLE)
    assert any("The first 2 of 7 events are left out" in note for note in profile.notes)


# -- what stacks, sizes and lives say ---------------------------------------------------------------------------------


def frames(*lines: int) -> list[dict[str, object]]:
    return [{"filename": "/home/me/train.py", "line": line, "name": "step"} for line in lines]


def test_a_block_without_a_stack_takes_no_line_from_its_size(tmp_path: Path) -> None:
    size = 2 << 20
    blocks = [
        {
            "address": START + number * size, "size": size, "requested_size": size, "state": "active_allocated",
            "frames": frames(7) * (number != 1),
        }
        for number in range(3)
    ]  # fmt: skip
    one = segment(segment_type="large", total_size=3 * size, blocks=blocks)

    report = vramkit.open_snapshot(written(tmp_path, [], [one])).report()

    assert "3 x 2.00 MiB  other             by train.py:7 in step" in report


def test_an_entry_without_a_stack_has_that_of_its_block_and_no_other(tmp_path: Path) -> None:
    block = {"address": START, "size": 512, "requested_size": 5, "state": "active_allocated", "frames": frames(7)}
    rest = {"address": START + 512, "size": (2 << 20) - 512, "requested_size": 0, "state": "inactive"}
    again = steps(
        ("segment_alloc", START, 2 << 20),
        ("alloc", START, 6),
        ("free_requested", START, 6),
        ("free_completed", START, 6),
        ("alloc", START, 5),
    )

    profile = vramkit.open_snapshot(written(tmp_path, again, [segment(blocks=[block, rest])]))

    assert profile.tape.lines == [None, "train.py:7 in step"]


def test_stacks_of_blocks_as_torch_2_0_wrote_them_are_read(tmp_path: Path) -> None:
    history = [{"addr": START, "real_size": 5, "frames": frames(7)}]
    blocks = [{"size": 2 << 20, "state": "active_allocated", "history": history}]

    profile = vramkit.open_snapshot(written(tmp_path, [], [segment(blocks=blocks)]))

    assert profile.tape.lines == ["train.py:7 in step"]


def of_workspace_size(*lives: tuple[int, bool]) -> tuple[list[object], list[object]]:
    """Entries and segments of allocations as large as a workspace: each (number of its place, whether it stays)."""
    size = 8_519_680
    entries: list[object] = []
    segments: list[object] = []
    for place, stays in lives:
        start = START + place * (32 << 20)
        blocks = [{"address": start, "size": size, "requested_size": size, "state": "active_allocated"}]
        entries += steps(("segment_alloc", start, size), ("alloc", start, size))
        if stays:
            segments.append(segment(address=start, total_size=size, segment_type="large", blocks=blocks))
        else:
            entries += steps(("free_requested", start, size), ("free_completed", start, size))
            entries += steps(("segment_free", start, size))
    return entries, segments


def workspaces(profile: vramkit.Profile) -> list[int]:
    """Numbers of the allocations that are shown as workspaces."""
    return [i for i, row in enumerate(profile.to_records()) if row["category"] == Category.WORKSPACE.name]


def test_without_stacks_nothing_is_called_a_workspace_for_its_size(tmp_path: Path) -> None:
    entries, segments = of_workspace_size((0, True), (1, False), (2, True))

    for history in (entries, []):
        profile = vramkit.open_snapshot(written(tmp_path, history, segments))

        assert workspaces(profile) == []
        assert any(note.startswith("2 allocations of 8,519,680 B") for note in profile.notes)


def test_stacks_of_python_alone_do_not_tell_a_workspace_from_logits(tmp_path: Path) -> None:
    entries, segments = of_workspace_size((0, True), (1, True))
    entries[1]["frames"] = frames(7)

    profile = vramkit.open_snapshot(written(tmp_path, entries, segments))

    assert workspaces(profile) == []
    assert profile.tape.lines == ["train.py:7 in step", None]
    assert any(note.startswith("2 allocations of 8,519,680 B") for note in profile.notes)


def test_torchs_own_frames_decide_what_a_workspace_is(tmp_path: Path) -> None:
    entries, segments = of_workspace_size((0, True), (1, True))
    native = {"filename": "??", "line": 0, "name": "at::cuda::getCurrentCUDABlasHandle(bool)"}
    entries[1]["frames"], entries[3]["frames"] = frames(7), [native, *frames(8)]

    profile = vramkit.open_snapshot(written(tmp_path, entries, segments))

    assert workspaces(profile) == [1]
    assert profile.tape.lines == ["train.py:7 in step", None]
    assert not any("8,519,680" in note for note in profile.notes)


def test_memory_on_a_device_without_a_trace_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "devices.pickle"
    path.write_bytes(pickle.dumps([segment(), segment(device=3)]))

    assert vramkit.open_snapshot(path).devices == ("cuda:0", "cuda:3")


def test_a_program_that_went_on_after_a_failure_did_not_end_there(tmp_path: Path) -> None:
    failed = entry(action="oom", device_free=1 << 20, size=1 << 40, time_us=9)
    ended = [*steps(*WHOLE), failed]
    went_on = [*steps(*WHOLE[:2]), failed, *steps(*WHOLE[2:])]

    assert "OUT OF MEMORY" in vramkit.open_snapshot(written(tmp_path, ended, [segment()])).report()
    report = " ".join(vramkit.open_snapshot(written(tmp_path, went_on, [segment()])).report().split())
    assert "OUT OF MEMORY" not in report
    assert "An allocation failed, of 1.00 TiB at event 3 of 6, and the program went on" in report
