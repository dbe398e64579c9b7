"""One line on a terminal that says how far a script is. Knows terminals and who else writes to them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

_SECONDS = 0.25
_ERASE = "\r\x1b[K"


class Progress:
    """Draws a line at the place where the script would write next, and takes it away before the script does.

    Where the script leaves a line unfinished, as progress bars of its own do, nothing is drawn.

    Args:
        terminal: where to draw.
        line: what to draw; empty: nothing now.
    """

    def __init__(self, terminal: TextIO, line: Callable[[], str]) -> None:
        self._terminal = terminal
        self._line = line
        self._process = os.getpid()
        self._lock = threading.RLock()  # what is drawn may be interrupted by a signal whose handler prints
        self._is_drawn = False
        self._at_start = True
        self._over = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Draw while a block runs."""
        streams = [each for each in (sys.stdout, sys.stderr) if is_terminal(each)]
        for stream in streams:
            # On the object itself: a stream in its place would not be the one that the script knows.
            stream.write = self._before(stream.write)  # type: ignore[method-assign]
        threading.Thread(target=self._run, daemon=True, name="vramkit progress").start()
        try:
            yield
        finally:
            if os.getpid() == self._process:  # else a fork of the script came out here
                self._over.set()
                with self._lock:
                    self.erase()
            for stream in streams:
                with suppress(AttributeError):  # the script has put something else there
                    del stream.write

    def draw(self) -> None:
        """Draw what there is to say now, unless the script is in the middle of a line."""
        with self._lock:
            text = self._line() if self._at_start and not self._over.is_set() else ""
            if text:
                self._is_drawn = True
                self._put(f"{_ERASE}{text[: _width(self._terminal) - 1]}")

    def erase(self) -> None:
        """Take the line away."""
        with self._lock:
            if self._is_drawn:
                self._is_drawn = False
                self._put(_ERASE)

    def _run(self) -> None:
        while not self._over.wait(_SECONDS):
            self.draw()

    def _before(self, write: Callable[[str], int]) -> Callable[[str], int]:
        def erase_and_write(text: str) -> int:
            if os.getpid() != self._process:  # a fork, in which the lock may be held for ever
                return write(text)
            with self._lock:
                self.erase()
                if text:
                    self._at_start = text.endswith("\n")
                return write(text)

        return erase_and_write

    def _put(self, text: str) -> None:
        # Past Python's stream: its own write is replaced above, and a buffer may hold half of the script's line.
        with suppress(OSError, ValueError):
            os.write(self._terminal.fileno(), text.encode(self._terminal.encoding or "ascii", "replace"))


def is_terminal(stream: Any) -> bool:
    """Whether somebody sees at once what is written to a stream."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # None, something else, or closed
        return False


def _width(terminal: TextIO) -> int:
    try:
        return os.get_terminal_size(terminal.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
