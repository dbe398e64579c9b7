"""A result is saved whole or not at all, whatever was there before."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from subprocesses import run_python
from told_profiles import training

import vramkit
from vramkit.gpus import find
from vramkit.results import files

PROFILE = training().profile(device_name="the old one")
ESTIMATE = vramkit.Estimate(tape=PROFILE.tape, device_name="the old one", engine="fake", gpu=find("t4"), batch_size=8)

FULL_DISK = """
import resource, sys
import numpy as np
import vramkit
result = vramkit.load({path!r})
events = np.zeros(200_000, result.tape.events.dtype)
events["action"], events["allocation"] = vramkit.Action.OOM, -1
events["address"] = np.random.default_rng(0).integers(0, 1 << 60, len(events))
object.__setattr__(result.tape, "events", np.concatenate([result.tape.events, events]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # as a disk that is full after so much
try:
    result.save({path!r})
except OSError as error:
    print("failed", error.errno)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file's size")
@pytest.mark.parametrize("result", [PROFILE, ESTIMATE], ids=["profile", "estimate"])
def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, result: vramkit.Profile | vramkit.Estimate
) -> None:
    path = tmp_path / "step.npz"
    result.save(path)
    before = path.read_bytes()

    printed = run_python(FULL_DISK.format(path=str(path)))

    assert printed.startswith("failed")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["step.npz"]
    assert vramkit.load(path).device_name == "the old one"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=type)
def test_whatever_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, error: BaseException
) -> None:
    path = tmp_path / "step.npz"
    path.write_bytes(b"old")

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(type(error)):
        PROFILE.save(path)

    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["step.npz"]


def test_a_new_file_is_on_the_disk_before_it_takes_the_old_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "step.npz"
    done: list[str] = []

    def noted(name: str) -> Callable[..., None]:
        real = getattr(os, name)
        return lambda *arguments: (done.append(name), real(*arguments))[1]

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name))

    PROFILE.save(path)

    assert done == ["fsync", "replace"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other permissions")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_the_old_files_permissions_stay(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "step.npz"
    path.write_bytes(b"old")
    path.chmod(mode)

    PROFILE.save(path)

    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert vramkit.load(path).device_name == "the old one"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other permissions")
def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"")

    PROFILE.save(tmp_path / "step.npz")

    assert (tmp_path / "step.npz").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.skipif(sys.platform == "win32", reason="Links need a privilege on Windows")
def test_a_link_goes_on_pointing_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "real.npz").write_bytes(b"old")
    (tmp_path / "link.npz").symlink_to("real.npz")

    PROFILE.save(tmp_path / "link.npz")

    assert (tmp_path / "link.npz").is_symlink()
    assert vramkit.load(tmp_path / "real.npz").device_name == "the old one"


@pytest.mark.skipif(sys.platform == "win32", reason="There is no /dev/null")
def test_what_is_no_file_is_written_to_and_not_replaced() -> None:
    before = os.stat("/dev/null")

    PROFILE.save("/dev/null")

    assert os.stat("/dev/null").st_rdev == before.st_rdev
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_folder_is_an_error_and_stays(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=str(tmp_path.name)):
        PROFILE.save(tmp_path)

    assert tmp_path.is_dir()


def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "step.npz"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # root may write everything

    with pytest.raises(PermissionError, match=r"step\.npz"):
        PROFILE.save(path)

    assert path.read_bytes() == b"old"


def test_a_file_is_read_no_further_than_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * (3 << 20))

    assert files.read(path, 3 << 20) == path.read_bytes()
    with pytest.raises(files.TooLargeError):
        files.read(path, (3 << 20) - 1)


@pytest.mark.skipif(sys.platform == "win32", reason="There is no /dev/zero")
def test_a_file_without_end_is_refused() -> None:
    with pytest.raises(vramkit.SnapshotError, match=r"more than 4\.00 MiB"):
        vramkit.load("/dev/zero", max_bytes="4 MiB")
    with pytest.raises(vramkit.SnapshotError, match=r"more than 4\.00 MiB"):
        vramkit.open_snapshot("/dev/zero", max_bytes="4 MiB")
