"""How the lines of a report are laid out: its width, how sentences are wrapped and long lines cut. Knows no result.

Plain ASCII: a report must not fail on the way into a file or a terminal with another encoding, least of all after an
out-of-memory error.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from ..errors import printable

WIDTH = 100
"""Characters of a line, at most."""


def sections(parts: Sequence[Sequence[str]]) -> str:
    """One text of several sections, with an empty line between them; those without lines are left out.

    Whatever is in a line, a terminal acts on nothing in it.
    """
    return "\n\n".join("\n".join(map(printable, part)) for part in parts if part)


def wrapped(text: str, head: str) -> list[str]:
    """Lines of at most `WIDTH`: the first begins with ``head``, the others are indented as far."""
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)


def note(text: str) -> list[str]:
    """A note of a result's as lines; whoever wrote it, a terminal acts on nothing in it."""
    return wrapped(printable(" ".join(text.split())), "Note: ")


def cut(line: str, width: int = WIDTH) -> str:
    """A line of at most so many characters."""
    line = printable(line.rstrip())
    return line if len(line) <= width else line[: width - 3] + "..."


def counted(count: int, noun: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{count:,} {noun}{'s' if count != 1 else ''}"
