"""Colours on terminals, and plain text everywhere else."""

from __future__ import annotations

import io
import re
import sys

import pytest
from frameworks import missing
from told_profiles import MIB, training

from vramkit.cli import printing
from vramkit.cli.colours import coloured, shows_colours
from vramkit.exports.pictures import COLORS
from vramkit.tape.events import Category


class Terminal(io.StringIO):
    """A stream that says it is one."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def without_codes(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def test_a_bar_has_the_colour_of_its_category_on_the_page_and_the_text_is_the_same() -> None:
    report = training().profile(reserved=200 * MIB, device_name="A Card").report()

    text = coloured(report)

    assert without_codes(text).replace("█", "#") == report
    [line] = [line for line in text.splitlines() if line.startswith("    activations ")]
    red, green, blue = (int(COLORS[Category.ACTIVATION][place : place + 2], 16) for place in (1, 3, 5))
    assert re.search(rf"%  \x1b\[38;2;{red};{green};{blue}m█+\x1b\[0m$", line)


@pytest.mark.parametrize(
    ("environment", "stream", "expected"),
    [
        ({"COLORTERM": "truecolor"}, Terminal(), True),
        ({"COLORTERM": "truecolor", "NO_COLOR": "1"}, Terminal(), False),
        ({}, Terminal(), False),
        ({"COLORTERM": "truecolor"}, io.StringIO(), False),
        ({"COLORTERM": "truecolor"}, None, False),
    ],
)
def test_colours_are_for_terminals_that_show_them(
    environment: dict[str, str], stream: io.StringIO | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("COLORTERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert shows_colours(stream) == expected


@pytest.mark.parametrize(("kind", "has_colours"), [("xterm-256color", True), ("dumb", False)])
def test_a_terminal_of_fewer_colours_gets_the_nearest_where_rich_is_installed(
    kind: str, has_colours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why := missing("rich"):
        pytest.skip(why)
    for name in ("COLORTERM", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", kind)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    report = training().profile(reserved=200 * MIB, device_name="A Card [bold]").report()

    printing.show(report)

    assert without_codes(terminal.getvalue()).replace("█", "#") == report + "\n"
    assert bool(re.search(r"\x1b\[38;5;\d+m█", terminal.getvalue())) == has_colours
    assert has_colours or "\x1b" not in terminal.getvalue()


def test_verdicts_stand_out_and_a_name_cannot_bring_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)
    profile = training().profile(reserved=200 * MIB, device_name="\x1b[2J")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)

    printing.show(f"{profile}\n\nDOES NOT FIT A Card: too small.")

    assert "\x1b[1;31mDOES NOT FIT A Card: too small.\x1b[0m" in terminal.getvalue()
    assert "\x1b" not in without_codes(terminal.getvalue())
