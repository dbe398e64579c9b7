"""Where builds are kept: whose it has to be, and what stays of a build that failed or was killed."""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from subprocesses import run_python

from vramkit import DeviceError
from vramkit.virtual_gpu import cache

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the virtual GPU is built on Linux only")

FILES = ("one", "two")
SOMEBODY = 54321
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file to another user"
)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What ``XDG_CACHE_HOME`` is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def make(scratch: Path, into: Path) -> None:
    for name in FILES:
        (into / name).write_text("built")


def make_nothing(scratch: Path, into: Path) -> NoReturn:
    raise AssertionError("what is there was to be used")


def keep() -> Path:
    return cache.keep("build", FILES, make)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_was_built_is_used_again() -> None:
    folder = keep()

    assert names(folder) == set(FILES)
    assert cache.keep("build", FILES, make_nothing) == folder
    assert names(folder.parent) == {"build"}


def test_what_is_built_is_said_before_and_what_is_there_is_not() -> None:
    said: list[str] = []

    with cache.announced(said.append):
        keep()
        keep()
    cache.keep("another", FILES, make)

    assert len(said) == 1
    assert "compiling" in said[0]


@pytest.fixture
def loose() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("loose")
def test_others_cannot_write_to_what_was_built_whatever_the_umask_is() -> None:
    folder = keep()

    for path in (folder.parent, folder, *folder.iterdir()):
        assert not path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def test_a_folder_of_ones_own_that_others_can_write_to_is_closed_to_them(root: Path) -> None:
    folder = root / "vramkit"
    folder.mkdir()
    folder.chmod(0o777)

    keep()

    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


@pytest.mark.parametrize("part", ["", "one"], ids=["the folder", "a file"])
def test_a_build_that_others_could_have_written_is_not_used(part: str) -> None:
    path = keep() / part
    path.chmod(0o777)

    with pytest.raises(DeviceError, match=f"Other users may write to {path}.* Set XDG_CACHE_HOME .*or remove"):
        keep()


@as_root
@pytest.mark.parametrize("part", ["..", "", "one"], ids=["the cache", "the folder", "a file"])
def test_what_belongs_to_another_user_is_not_used(part: str) -> None:
    os.chown(keep() / part, SOMEBODY, SOMEBODY)

    with pytest.raises(DeviceError, match=f"belongs to another user, number {SOMEBODY}.* Set XDG_CACHE_HOME"):
        keep()


def test_a_cache_is_another_users_for_everybody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = keep()
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY)

    if owner == 0:  # whom everybody has to trust
        assert keep() == folder
    else:
        with pytest.raises(DeviceError, match=f"belongs to another user, number {owner}"):
            keep()


@pytest.mark.parametrize("part", ["", "one"], ids=["the folder", "a file"])
def test_links_are_not_followed(part: str, root: Path) -> None:
    path = keep() / part
    path.rename(root / "elsewhere")
    path.symlink_to(root / "elsewhere")

    with pytest.raises(DeviceError, match=f"{path} is a link, or nothing that was built here"):
        keep()


def test_the_cache_itself_may_lie_elsewhere(root: Path) -> None:
    (root / "roomy").mkdir()
    (root / "vramkit").symlink_to(root / "roomy")

    keep()

    assert names(root / "roomy") == {"build"}


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    def unknown(number: int) -> NoReturn:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)

    with pytest.raises(DeviceError, match=r"This user has no home folder.* Set XDG_CACHE_HOME"):
        keep()


def test_a_cache_home_that_is_not_absolute_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))

    assert cache.cache_folder() == tmp_path / ".cache" / "vramkit"


def test_a_full_disk_is_a_device_error_and_leaves_nothing(root: Path) -> None:
    def fill(scratch: Path, into: Path) -> NoReturn:
        (into / "one").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(into / "two"))

    with pytest.raises(DeviceError, match=r"can't be written \(No space left on device\)\. Make room"):
        cache.keep("build", FILES, fill)
    assert names(root / "vramkit") == set()


_AS_NOBODY = """
import os
from pathlib import Path
from vramkit.virtual_gpu import cache
if os.geteuid() == 0:
    os.setegid(65534)
    os.seteuid(65534)
def make(scratch, into):
    for name in {files!r}:
        (into / name).write_text("built")
try:
    print(cache.keep("build", {files!r}, make))
except cache.DeviceError as error:
    print(error)
"""


@pytest.fixture
def for_everybody(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of this user that everybody may look into, and nobody but root may write to."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp())
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    yield folder
    folder.chmod(0o700)
    shutil.rmtree(folder)


def test_a_cache_that_may_not_be_written_is_named(for_everybody: Path) -> None:
    for_everybody.chmod(0o555)

    answer = run_python(_AS_NOBODY.format(files=FILES))

    assert answer.startswith(f"The virtual GPU was asked for. Its cache folder {for_everybody / 'vramkit'} can't be")
    assert "(Permission denied)" in answer


def test_a_build_that_is_there_is_used_where_nothing_can_be_written(for_everybody: Path) -> None:
    folder = keep()
    for path in (folder, folder.parent, for_everybody):
        path.chmod(0o555)

    try:
        answer = run_python(_AS_NOBODY.format(files=FILES))
    finally:
        folder.chmod(0o755)
        folder.parent.chmod(0o755)

    assert answer == f"{folder}\n"


_KILLED = """
import os, signal
from vramkit.virtual_gpu import cache
def make(scratch, into):
    (into / "one").write_text("half")
    if os.fork() == 0:
        os.kill(os.getppid(), signal.SIGKILL)
        os._exit(0)
    signal.pause()
cache.keep("build", {files!r}, make)
"""


def test_what_a_killed_build_left_behind_is_cleared_away_by_the_next(root: Path) -> None:
    with pytest.raises(AssertionError, match=f"status {-signal.SIGKILL}"):
        run_python(_KILLED.format(files=FILES))
    (left_over,) = names(root / "vramkit")
    assert left_over.startswith("building-")

    folder = keep()

    assert names(root / "vramkit") == {"build"}
    assert names(folder) == set(FILES)


def test_a_build_that_is_under_way_is_left_alone_and_both_succeed() -> None:
    def make_while_another_does(scratch: Path, into: Path) -> None:
        faster = keep()
        assert into.is_dir()
        assert names(faster) == set(FILES)
        make(scratch, into)

    folder = cache.keep("build", FILES, make_while_another_does)

    assert names(folder.parent) == {"build"}
    assert names(folder) == set(FILES)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("")], ids=["missing", "empty"])
def test_a_build_that_is_not_whole_is_made_anew(damage: object) -> None:
    folder = keep()
    assert callable(damage)
    damage(folder / "two")

    keep()

    assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(FILES, "built")
