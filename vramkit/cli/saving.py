"""Where a verb's result goes as a file. Knows what keeps a file from being written; knows nothing of results."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from .._version import __version__
from ..errors import UsageError
from .printing import show

if TYPE_CHECKING:
    from ..results.readable import ReadableResult

SCHEMA = 1
"""Of what verbs write as JSON: docs/json.md. Another number where a name goes or means something else."""

JSON = "The JSON"

STDOUT = "-"
"""In the place of a file's name."""

PAGE = "The report"


def check_can_save(what: str, path: str) -> None:
    """What is wrong with where a result goes is said before it is made: a script can run for hours.

    Args:
        what: is saved, as the beginning of a sentence.
        path: where to.

    Raises:
        UsageError: no file can be written there.
    """
    if path == STDOUT and what == JSON:
        return
    folder = os.path.dirname(path) or os.curdir
    if not path:
        raise _cannot_save(what, path, "the name is empty")
    if not os.path.isdir(folder):
        raise _cannot_save(what, path, f"there is no folder {folder!r}")
    if os.path.isdir(path):
        raise _cannot_save(what, path, "that is a folder")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise _cannot_save(what, path, "permission denied")


def save(what: str, result: ReadableResult, path: str) -> None:
    """Save a result. Raises: UsageError: it can't be written."""
    _write(what, result.save, path)


def add_html_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--html`` to a verb. `check_can_save` it as `PAGE` before the verb begins."""
    parser.add_argument("--html", metavar="FILE", help="also write the report as one web page, which works offline")


def write_page(write: Callable[[str], object], path: str) -> str:
    """Write a result's page.

    Args:
        write: the result's ``to_html``.
        path: where to.

    Returns:
        A sentence that says where it is.

    Raises:
        UsageError: it can't be written.
    """
    _write(PAGE, write, path)
    return f"vramkit: the report is in {path}; open it in a browser"


def _write(what: str, write: Callable[[str], object], path: str) -> None:
    try:
        write(path)
    except OSError as error:
        raise _cannot_save(what, path, error.strerror or str(error)) from error


def write_json(document: Mapping[str, object], path: str) -> None:
    """Write a verb's answer as JSON, with the number of its schema: a file, or one line on the standard output.

    Raises:
        UsageError: it can't be written.
    """
    from ..results.files import replacing

    whole = {"schema": SCHEMA, "vramkit": __version__, **document}
    if path == STDOUT:
        show(json.dumps(whole))
        return
    try:
        with replacing(path) as file:
            file.write(f"{json.dumps(whole, indent=1)}\n".encode())
    except OSError as error:
        raise _cannot_save(JSON, path, error.strerror or str(error)) from error


def _cannot_save(what: str, path: str, why: str) -> UsageError:
    return UsageError(f"{what} was to be saved as {path!r}", f"it can't be written: {why}")
