"""A line of source as the name of an allocation: how it is written, and read again. Knows no tape and no file."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE = re.compile(r"(?P<file>[^:]+\.py):(?P<number>\d{1,9}|\?) (?P<function>.+)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLine:
    """A line of a program, and the function that it is in."""

    file: str
    """Name of the file, without folders."""
    number: int
    """From 1; 0: not known."""
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number or '?'} {self.function}"


def source_line(name: str) -> SourceLine | None:
    """The line that an allocation's name says; None: it is the name of something else."""
    found = _LINE.fullmatch(name)
    if found is None:
        return None
    number = 0 if found["number"] == "?" else int(found["number"])
    return SourceLine(file=found["file"], number=number, function=found["function"])
