"""Marks: what the program was doing, in the order in which its threads did it, and what scans of tensors saw.

Knows nothing of the allocator: a source gives it a function that puts a mark's number into the source's own record of
events. Nor does it know what lays a mark down; that are the hooks beside this file. What the marks mean together is
settled afterwards, in ``vramkit.attribution.categories``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from ..attribution.recording import Kind, Mark, Scan
from ..tape.events import Category
from .lines import Line, Lines

_T = TypeVar("_T")


class Marks:
    """The marks of one recording.

    Args:
        place: called with each mark's number, as text, in the thread that lays it down and just after that.
        stamps: whether ``place`` also takes texts ``"module@number"``: the backward is at this module, and so many
            marks have been laid down. False: a mark says it.
        stamped: the last text that ``place`` got in this thread; None: nobody keeps it.
        name: of the recording, with which every text that ``place`` gets begins: ``"name:number"``, or
            ``"name.line:number"`` from the second line on. Texts of an earlier recording can still be around.
    """

    def __init__(
        self,
        place: Callable[[str], object],
        *,
        stamps: bool = False,
        stamped: Callable[[], str] | None = None,
        name: str = "",
    ) -> None:
        self.place = place
        self._stamped = stamped
        self.stamps = stamps
        self.lines = Lines(name)
        self.entries: list[Mark] = []
        self.scans: list[Scan] = []
        self.kept: list[Mark] = []
        """The marks up to `keep`."""
        self.is_open = True
        """Whether anybody waits for more of them."""
        self._last_scan: dict[tuple[Category | None, int], int] = {}
        self._lock = threading.Lock()

    def lay(self, line: Line, kind: Kind, value: int) -> None:
        """Lay a mark down. The hooks of modules and nodes do the same by themselves, as each call costs."""
        # In this order: a thread that comes between only makes this one's number larger, and never another mark's.
        self.entries.append((kind, value, line.number))
        self.place(f"{line.prefix}{len(self.entries)}")

    @contextmanager
    def around(self, kind: Kind) -> Iterator[None]:
        """Lay a mark with the value 1 down, and when the block ends one with 0. It changes nothing else."""
        if not self.is_open:
            yield
            return
        line, before = self.lines.current(), None if self._stamped is None else self._stamped()
        self.lay(line, kind, 1)
        try:
            yield
        finally:
            self.lay(line, kind, 0)
            if before is not None and self.is_open:
                self.place(before)  # it may say more than a mark does: which module the backward is at

    def scan(
        self,
        line: Line,
        category: Category | None,
        addresses: list[int],
        names: Sequence[str],
        parts: Sequence[tuple[int, int]] = (),
        *,
        is_idle: bool = False,
    ) -> None:
        """Lay down what a look at tensors saw; see `Scan`."""
        key = category, id(names)
        with self._lock:
            last = self._last_scan.get(key, -1)
            if last < 0 or not self.scans[last].says(addresses, names, parts):
                # Most tensors stay where they are: thousands of steps must not keep thousands of equal lists.
                last = self._last_scan[key] = len(self.scans)
                self.scans.append(Scan(category, addresses, names, parts, is_idle))
        self.lay(line, Kind.SCAN, last)

    def keep(self) -> None:
        """Keep what there is: other threads may still be inside a forward, and go on to make marks."""
        self.kept = self.entries.copy()

    def close(self) -> None:
        """Nobody waits for more marks."""
        self.is_open = False


def padded(places: Sequence[_T], count: int) -> list[_T]:
    """One place a mark, where a thread had laid its last one down and not said where, when the recording ended.

    Args:
        places: at least one, in the order of the marks.
        count: how many there have to be.
    """
    return [*places[:count], *[places[-1]] * (count - len(places))]
