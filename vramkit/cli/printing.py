"""How the command line prints: after the script, what the terminal can show, even where nobody reads. Knows streams."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import TextIO

from .colours import for_stream


def show(text: str) -> None:
    """Print to the standard output; what its encoding lacks is shown as Python would write it."""
    print(_shown(text, sys.stdout), flush=True)


def tell(text: str) -> None:
    """Write to the standard error stream, after whatever the script wrote."""
    flush()
    survive(lambda: print(_shown(text, sys.stderr), file=sys.stderr, flush=True))


def flush() -> None:
    """Let out what the script wrote."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            survive(stream.flush)


def survive(write: Callable[[], object]) -> None:
    """Write, even if the reader of a pipe has had enough (``| head``): the exit code is still the script's."""
    try:
        write()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # a stream that has no descriptor was not the pipe
                stream.flush()
            with contextlib.suppress(OSError, ValueError):
                os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _shown(text: str, stream: TextIO | None) -> str:
    """As the stream can show it: in colours, or without what its encoding lacks."""
    text = for_stream(text, stream)
    name = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(name, "backslashreplace").decode(name)
