"""``vramkit.load``: a saved result as what it was, a `Profile` or an `Estimate`. Knows the kinds, not the format."""

from __future__ import annotations

from dataclasses import fields, replace
from os import PathLike

from .errors import SnapshotError, printable
from .estimation.result import Estimate, restored
from .results import archive, files
from .results.checks import DamagedError
from .results.profile import Profile
from .sizes import format_size, parse_size
from .tape.memory import MemoryResult


def load(path: str | PathLike[str], *, max_bytes: int | str = files.MAX_BYTES) -> Profile | Estimate:
    """Open what ``save`` of a profile or an estimate wrote.

    ::

        profile = vramkit.load("step.npz")
        print(profile)

    Args:
        path: of the file. Nothing in it is trusted: whoever made it, what this returns can be shown.
        max_bytes: how much the file may unpack to, in bytes or as a text: a few kB can claim any size. What reads the
            result takes some times as much.

    Returns:
        A result equal to the one that was saved, in every table and figure. An estimate can't run its program again.

    Raises:
        SnapshotError: the file is damaged, is something else, was written by a newer vramkit, or unpacks to more.
        UsageError: ``max_bytes`` is no size.
        OSError: there is no such file, or it can't be read.
    """
    asked = f"{printable(str(path))} was opened as a saved profile"
    limit = parse_size(max_bytes)
    try:
        content = files.read(path, limit)
    except files.TooLargeError as error:
        raise _too_large(asked, limit) from error
    try:
        return _result(archive.read(content, limit))
    except files.TooLargeError as error:
        raise _too_large(asked, limit) from error
    except archive.UnknownFormatError as error:
        raise SnapshotError(
            asked,
            f"it is of format {error.number}, and this vramkit reads formats 1 to {archive.FORMAT}",
            instead="Open it with the vramkit that wrote it, or a newer one",
        ) from error
    except Exception as error:  # what a damaged file makes zipfile, zlib, numpy and json raise is anything
        raise SnapshotError(
            asked,
            f"it can't be read: {error if isinstance(error, DamagedError) else type(error).__name__}",
            "It is damaged, or is not what vramkit saved",
            "Save the profile again with profile.save(path)",
        ) from error


def _result(saved: archive.Saved) -> Profile | Estimate:
    first, *others = (_profile(each) for each in saved.devices)
    if saved.kind == "Estimate" and saved.particulars:  # older files have none, and are opened as profiles
        return restored(first, saved.particulars)
    return replace(first, others=tuple(others))


def _profile(result: MemoryResult) -> Profile:
    return Profile(**{each.name: getattr(result, each.name) for each in fields(MemoryResult)})


def _too_large(asked: str, limit: int) -> SnapshotError:
    return SnapshotError(
        asked,
        f"it unpacks to more than {format_size(limit)}",
        "A file can claim any size, so there is a limit",
        "If you know whose it is, give a larger max_bytes (--max-bytes), such as '16 GiB'",
    )
