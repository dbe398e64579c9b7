"""That a program raised something, as a value that a process without torch can send. Knows no program."""

from __future__ import annotations

import re
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
    frames: tuple[tuple[str, str, int], ...] = ()
    """Of the program's own: file, function and line, the outermost first."""

    @property
    def step(self) -> int:
        """The number of the step that it happened in; 0: in none."""
        found = re.search(r"(?:^run|in) step (\d+) of", self.doing)
        return int(found[1]) if found else 0
