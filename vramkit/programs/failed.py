"""That a program raised something, as a value that a process without torch can send. Knows no program."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The program raised something."""

    doing: str
    """As the end of "was to ..."."""
    kind: str
    """Name of the exception's class."""
    text: str
    traceback: str
