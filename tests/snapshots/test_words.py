"""What is said of a snapshot: no more than it knows. Files of every kind, by one program on a virtual GPU."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

import vramkit
from vramkit.reports.html.payload import payload
from vramkit.tape.events import Category, Phase

MAKER = Path(__file__).with_name("making.py")
KINDS = ("whole", "none", "list", "late", "lost", "state", "failed")
WINDOWS = ("late", "lost", "state", "failed")
MOMENTS = ("none", "list")
LOGITS = 32_768 * 65 * 4
WORDS_OF_A_PROFILE = ("between the phases", "step 1", "1 step", "made outside of", "in no module")

pytestmark = pytest.mark.virtual_gpu


Made = dict[str, tuple[vramkit.Profile, dict[str, int]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("snapshots")


@pytest.fixture
def made(folder: Path) -> Made:
    """Each kind of snapshot as a profile, and what torch's counters said when it was written."""
    return make(folder)


@functools.cache
def make(folder: Path) -> Made:
    done = subprocess.run([sys.executable, str(MAKER), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    return {kind: (vramkit.open_snapshot(folder / f"{kind}.pickle"), figures[kind]) for kind in KINDS}


def line_number(text: str) -> int:
    return 1 + next(i for i, line in enumerate(MAKER.read_text().splitlines()) if text in line)


def shown(profile: vramkit.Profile) -> str:
    return " ".join(profile.report().split())


def all_words(profile: vramkit.Profile) -> str:
    """Everything that text, page and JSON say."""
    header, _ = payload(profile)
    return " ".join([shown(profile), json.dumps(header["devices"]), json.dumps(profile.to_dict())])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_held_at_the_end_is_torchs_own_figure(made: Made, kind: str) -> None:
    profile, torchs = made[kind]

    assert profile.final.allocated == torchs["allocated"]
    assert profile.final.reserved == torchs["reserved"]


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_whole_history_names_the_highest_as_torch_does(made: Made, kind: str) -> None:
    profile, torchs = made[kind]

    assert profile.is_window == (kind != "whole")
    assert profile.is_moment == (kind in MOMENTS)
    assert ("max_memory" in all_words(profile)) == (kind == "whole")
    if kind == "whole":
        assert profile.peak_allocated == torchs["most_allocated"]
        assert profile.peak_reserved == torchs["most_reserved"]
    else:
        assert profile.peak_allocated < torchs["most_allocated"]  # which the name would have claimed


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_said_of_steps_or_phases_that_nobody_looked_for(made: Made, kind: str) -> None:
    profile, _ = made[kind]
    words = all_words(profile).replace(" in step", "")  # a function of the program's

    assert [each for each in WORDS_OF_A_PROFILE if each in words] == []
    assert not {".", ""} & {line.strip() for part in profile.report().split("\n\n") for line in part.splitlines()}
    assert profile.steps == profile.phases == ()
    assert profile.metrics()["steps"] == 0
    assert {row["step"] for row in profile.to_records()} == {None}
    compared = vramkit.compare(profile, made["whole"][0])
    assert [each for each in WORDS_OF_A_PROFILE if each in str(compared).replace(" in step", "")] == []


@pytest.mark.parametrize("kind", [*WINDOWS, *MOMENTS])
def test_a_history_without_its_beginning_says_so_and_gives_no_advice_of_all_time(made: Made, kind: str) -> None:
    profile, _ = made[kind]
    document = profile.to_dict()["devices"][0]

    assert document["is_window"]
    assert not any("ever allocated" in each["text"] for each in document["advice"])
    note = "one moment only" if kind in MOMENTS else "Its history begins in the middle"
    assert any(note in each for each in profile.notes)


def test_torchs_own_frames_say_the_phase(made: Made) -> None:
    records = made["whole"][0].to_records()
    weights = 512 * 512 * 4  # some torches keep a workspace of this size, too
    held = [row for row in records if row["died"] is None and row["category"] == Category.OTHER.name]
    phases = {(row["phase"], row["line"]) for row in held if row["requested"] == weights}

    assert phases == {
        (None, f"making.py:{line_number('.cuda()')} in main"),
        (Phase.OPTIMIZER.name, f"making.py:{line_number('optimizer.step()')} in step"),
    }
    of_backward = {row["line"] for row in records if row["phase"] == Phase.BACKWARD.name}
    assert "autograd engine: AddmmBackward0" in of_backward
    assert "made in the backward at autograd engine: " in shown(made["whole"][0])


@pytest.mark.parametrize("kind", KINDS)
def test_logits_as_large_as_a_workspace_are_none(made: Made, kind: str) -> None:
    profile, _ = made[kind]
    alike = [row for row in profile.to_records() if row["requested"] == LOGITS and row["died"] is None]
    logits = [row for row in alike if row["line"] == f"making.py:{line_number('zeros(LOGITS')} in main"]

    assert [row["category"] for row in logits] == [Category.OTHER.name]
    assert [row["category"] for row in alike if row not in logits] == [Category.WORKSPACE.name] * 2


@pytest.mark.parametrize("kind", ["none", "list", "state", "late"])
def test_stacks_of_blocks_give_what_is_alive_its_line(made: Made, kind: str) -> None:
    lines = {row["line"] for row in made[kind][0].to_records() if row["born"] == -1}

    assert f"making.py:{line_number('.cuda()')} in main" in lines


def test_a_failure_says_what_was_free_and_who_asked(made: Made) -> None:
    profile, torchs = made["failed"]

    assert profile.out_of_memory[-1].device_free == torchs["free"]
    assert "on the device were free, and the allocator held" in shown(profile)
    assert f"asked for by making.py:{line_number('1 << 40')} in main" in shown(profile)


def test_private_pools_are_told(made: Made) -> None:
    profile, _ = made["failed"]

    assert any("in 1 private pool" in note and "3.00 MiB of that allocated" in note for note in profile.notes)


@pytest.mark.parametrize("kind", ["whole", "lost", "none"])
def test_a_saved_snapshot_still_knows_no_more(made: Made, kind: str, tmp_path: Path) -> None:
    profile, _ = made[kind]
    profile.save(tmp_path / "saved.npz")

    assert vramkit.load(tmp_path / "saved.npz").report() == profile.report()
