"""Files that are read up to a limit, and replaced whole or not at all. Knows nothing of what is in them."""

from __future__ import annotations

import errno
import io
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from typing import BinaryIO

MAX_BYTES = "4 GiB"
"""What a file may unpack to where nobody said; a snapshot of 500 MB, or a saved profile of 30 million events, does."""

_PIECE = 1 << 20


class TooLargeError(Exception):
    """A file is, or would unpack to, more than was allowed."""


def read(path: str | PathLike[str], max_bytes: int) -> bytes:
    """All of a file.

    Raises:
        TooLargeError: it has more bytes than that; not all of them were read.
        OSError: it can't be read.
    """
    content = io.BytesIO()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            content.write(piece)
            if content.tell() > max_bytes:
                raise TooLargeError
    return content.getvalue()


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of another when all of it is on the disk; until then, that one stays.

    ::

        with replacing("step.npz") as file:
            file.write(content)

    The new file has the old one's permissions; a symbolic link goes on pointing to it. What is no file (a pipe,
    ``/dev/stdout``) is written to as it is.

    Raises:
        OSError: it can't be written; nothing is left behind.
    """
    target = os.path.realpath(path)
    exists = os.path.exists(target)
    if exists and not os.path.isfile(target):
        with open(target, "wb") as file:  # a folder is an error here, as ever
            yield file
        return
    if exists and not os.access(target, os.W_OK):  # it could be replaced all the same, but was protected against that
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
    # A name of its own beside the target; not tempfile's, whose files only their owner can read.
    beside = os.path.join(os.path.dirname(target), f".vramkit-{secrets.token_hex(8)}")
    with open(beside, "xb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if exists:
                shutil.copymode(target, beside)
            file.close()  # Windows replaces nothing by an open file
            os.replace(beside, target)
        except BaseException:
            with suppress(OSError):  # what a full disk has still buffered
                file.close()
            os.unlink(beside)
            raise
