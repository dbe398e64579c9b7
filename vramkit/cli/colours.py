"""A report's text in a terminal's colours: the bars in those of their categories, and verdicts. Knows the text's lines;
what colours a terminal has that doesn't say so, rich knows, where it is installed.

The text is made once, as ASCII, and is what files and pipes get. Colours are put into it on its way to a terminal, so
no report is written twice. What is in it already acts on no terminal: see ``reports/layout.py``.
"""

from __future__ import annotations

import importlib.util
import os
import re
from typing import TextIO

from .progress import is_terminal

_RESET = "\x1b[0m"
_BAD, _GOOD, _BOLD = "\x1b[1;31m", "\x1b[32m", "\x1b[1m"
_VERDICTS = (
    (re.compile(r"^(OUT OF MEMORY:|DOES NOT FIT .*)", re.MULTILINE), _BAD),
    (re.compile(r"^(Fits .*)", re.MULTILINE), _GOOD),
    (re.compile(r"^(vramkit: .*)", re.MULTILINE), _BOLD),
)
_DARK = 0.25  # below, a colour of the page is made lighter: it can't be seen on black


def shows_colours(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal that says it shows all colours, and nobody asked for none (``NO_COLOR``)."""
    return os.environ.get("COLORTERM") in ("truecolor", "24bit") and _takes_codes(stream)


def _takes_codes(stream: TextIO | None) -> bool:
    if stream is None or os.environ.get("NO_COLOR"):
        return False
    return is_terminal(stream) and (stream.encoding or "").lower().replace("-", "") == "utf8"


def for_stream(text: str, stream: TextIO | None) -> str:
    """A report's text in the colours that a stream shows: all, those that rich finds a terminal to have, or none."""
    if shows_colours(stream):
        return coloured(text)
    if not _takes_codes(stream) or importlib.util.find_spec("rich") is None:
        return text
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream)
    if console.color_system is None:
        return text
    with console.capture() as printed:
        console.print(Text.from_ansi(coloured(text)), soft_wrap=True, end="")
    shown: str = printed.get()
    return shown


def coloured(text: str) -> str:
    """A report's text with codes for colours."""
    for pattern, code in _VERDICTS:
        text = pattern.sub(lambda found, code=code: f"{code}{found[1]}{_RESET}", text)  # type: ignore[misc] # a default
    codes = _codes()
    names = "|".join(map(re.escape, codes))
    bars = re.compile(rf"^( {{4}}({names}) .* [\d.]+%  )(#+)$", re.MULTILINE)
    return bars.sub(lambda found: f"{found[1]}{codes[found[2]]}{'█' * len(found[3])}{_RESET}", text)


def _codes() -> dict[str, str]:
    """What begins the colour of each category, by the category's name in reports."""
    from ..exports.pictures import COLORS  # numpy, which not every verb needs
    from ..reports.sentences import CATEGORY_NAMES

    found = {}
    for category, color in COLORS.items():
        parts = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
        if sum(parts) < _DARK * 3 * 255:
            parts = [(part + 255) // 2 for part in parts]
        found[CATEGORY_NAMES[category]] = f"\x1b[38;2;{';'.join(map(str, parts))}m"
    return found
