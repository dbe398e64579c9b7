"""``vramkit view FILE``: a saved result, or a snapshot that torch wrote, as text or as a web page."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import SnapshotError, printable
from ..results.files import MAX_BYTES
from .printing import show
from .saving import JSON, PAGE, STDOUT, add_html_option, check_can_save, write_json, write_page

if TYPE_CHECKING:
    from ..results.readable import ReadableResult
    from . import Verbs


def add_to(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "view",
        help="a saved profile, or torch's own snapshot, as text or as a web page",
        description="Prints the report of a profile that `profile.save(FILE)` or `vramkit run --save FILE` wrote, or "
        "of a snapshot that torch.cuda.memory._dump_snapshot(FILE) wrote. Nothing in the file is run.",
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--json", metavar="FILE", help="also write everything as JSON; -: to stdout, and no text")
    parser.add_argument(
        "--max-bytes", metavar="SIZE", default=MAX_BYTES, help="what the file may unpack to (default: %(default)s)"
    )
    add_html_option(parser)
    parser.set_defaults(main=main)


def main(options: argparse.Namespace) -> int:
    """Print the report of a file."""
    if options.html is not None:
        check_can_save(PAGE, options.html)
    if options.json is not None:
        check_can_save(JSON, options.json)
    result = open_result(options.file, options.max_bytes)
    written = f"\n{write_page(result.to_html, options.html)}" if options.html else ""  # before a reader can leave
    if options.json != STDOUT:
        show(result.report())
        if written:
            show(written)
    if options.json is not None:
        write_json({"kind": "view", "file": options.file, "result": result.to_dict()}, options.json)
    return 0


def open_result(path: str, max_bytes: int | str = MAX_BYTES) -> ReadableResult:
    """Open a file of any kind that can be shown: the one place to add another kind.

    Raises:
        SnapshotError: it is none, or it can't be read.
    """
    from ..loading import load
    from ..snapshots.opening import open_snapshot

    asked = f"{printable(path)} was to be shown"
    try:
        with open(path, "rb") as file:
            is_saved = file.read(2) == b"PK"  # a zip: what vramkit saves; torch's snapshots are pickles
        if path.endswith(".npz") and not is_saved:
            raise SnapshotError(
                asked,
                "its name is a saved profile's, but it is no zip file, which those are",
                "It is damaged",
                "Save the profile again with profile.save(path)",
            )
        return load(path, max_bytes=max_bytes) if is_saved else open_snapshot(path, max_bytes=max_bytes)
    except OSError as error:
        raise SnapshotError(asked, f"it can't be read: {error.strerror or error}") from error
