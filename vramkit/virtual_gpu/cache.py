"""Where builds are kept: in a folder that nobody else can write to, each whole or not at all. Knows folders, owners and
locks; knows no compiler, and not what is built.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from ..errors import DeviceError

_ASKED = "The virtual GPU was asked for"
_ELSEWHERE = "Set XDG_CACHE_HOME to a folder of your own"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_folder() -> Path:
    """Where builds are kept: ``$XDG_CACHE_HOME/vramkit``, else ``~/.cache/vramkit``.

    Raises:
        DeviceError: this user has no home.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not root.is_absolute():  # its specification: to be ignored
        try:
            root = Path.home() / ".cache"
        except RuntimeError as error:
            raise DeviceError(
                _ASKED, "this user has no home folder, where it would be kept once it is built", instead=_ELSEWHERE
            ) from error
    return root / "vramkit"


_announce: ContextVar[Callable[[str], object] | None] = ContextVar("announce", default=None)


@contextmanager
def announced(tell: Callable[[str], object]) -> Iterator[None]:
    """Within the block, what is built is said before: it takes seconds, in which nothing else is seen.

    Args:
        tell: is called with a sentence.
    """
    before = _announce.set(tell)
    try:
        yield
    finally:
        _announce.reset(before)


def keep(name: str, files: Sequence[str], make: Callable[[Path, Path], None]) -> Path:
    """The folder of a name in the cache, with its files in it.

    They come into being in a folder of their own, which is renamed when it is complete: of two processes that start at
    once, both make them, one wins, and both go on with whole files. What processes that were killed left behind is
    cleared away when no other process is at it.

    Args:
        name: of the folder.
        files: the names of what it holds.
        make: is called if they are not there, with a folder for its scratch files and the one to put them into.

    Raises:
        DeviceError: the cache can't be written, or others could have written what lies there.
    """
    cache = cache_folder()
    try:
        _make_private(cache)
        target = cache / name
        if not _is_whole(target, files):
            with _scratch(cache, target, files) as scratch:
                if not _is_whole(target, files):  # somebody else has just made it
                    if announce := _announce.get():
                        announce(
                            "vramkit: compiling a part of the virtual GPU, once for each torch; it takes seconds ..."
                        )
                    _make(scratch, target, files, make)
    except OSError as error:
        raise DeviceError(
            _ASKED,
            f"its cache folder {cache} can't be written ({error.strerror or error})",
            instead="Make room if the disk is full, or set XDG_CACHE_HOME to a folder that can be written",
        ) from error
    return target


def _make_private(cache: Path) -> None:
    """Make the folder, if it is not there, so that only this user can write to it."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.mkdir(mode=0o700, exist_ok=True)
    found = cache.stat()
    if found.st_uid == os.geteuid() and found.st_mode & _OTHERS_WRITE:
        cache.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS_WRITE)
        found = cache.stat()
    _check(cache, found, stat.S_ISDIR)


def _is_whole(target: Path, files: Sequence[str]) -> bool:
    """Whether the files are there. Raises: DeviceError if somebody else could have put them there."""
    try:
        _check(target, target.lstat(), stat.S_ISDIR)
        found = {path: path.lstat() for path in (target / name for name in files)}
    except FileNotFoundError:
        return False
    for path, status in found.items():
        _check(path, status, stat.S_ISREG)
    return all(status.st_size for status in found.values())  # a machine that stopped leaves empty files


def _check(path: Path, found: os.stat_result, is_of_its_kind: Callable[[int], bool]) -> None:
    """Whether only this user (or root) can have written it."""
    if not is_of_its_kind(found.st_mode):
        wrong = f"{path} is a link, or nothing that was built here"
    elif found.st_uid not in (os.geteuid(), 0):
        wrong = f"{path} belongs to another user, number {found.st_uid}"
    elif found.st_mode & _OTHERS_WRITE:
        wrong = f"other users may write to {path}"
    else:
        return
    raise DeviceError(
        _ASKED,
        wrong,
        "What lies there would run in this process, so only you may be able to change it",
        f"{_ELSEWHERE}, or remove what lies there",
    )


@contextmanager
def _scratch(cache: Path, target: Path, files: Sequence[str]) -> Iterator[Path]:
    """A folder to work in, that is gone afterwards; those of processes that were killed go before.

    Whoever works holds a shared lock on the cache. Who gets it for itself alone knows that nobody works, so that what
    lies there is left over.
    """
    import fcntl  # not on Windows

    cache_lock = os.open(cache, os.O_RDONLY)
    try:
        with suppress(OSError):  # others work, or this file system has no locks: then nothing is cleared away
            fcntl.flock(cache_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            damaged = [] if _is_whole(target, files) else [target]
            for left_over in (*cache.glob("building-*"), *damaged):
                shutil.rmtree(left_over, ignore_errors=True)
        with suppress(OSError):
            fcntl.flock(cache_lock, fcntl.LOCK_SH)
        scratch = Path(tempfile.mkdtemp(prefix="building-", dir=cache))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    finally:
        os.close(cache_lock)


def _make(scratch: Path, target: Path, files: Sequence[str], make: Callable[[Path, Path], None]) -> None:
    into = scratch / "whole"
    into.mkdir(mode=0o700)
    make(scratch, into)
    for name in files:
        (into / name).chmod(0o755)  # whatever the umask says
    try:
        into.rename(target)
    except OSError:
        if not _is_whole(target, files):  # not merely that another process was faster
            raise
