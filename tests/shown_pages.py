"""A report's payload read as the page reads it, to be held against the result that it was made from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vramkit.reports.html.columns import column, unpacked
from vramkit.reports.html.payload import payload
from vramkit.tape.events import Category
from vramkit.tape.memory import MemoryResult

Ints = npt.NDArray[np.int64]


@dataclass
class ShownDevice:
    """One device of a page."""

    header: dict[str, Any]
    content: bytes

    def table(self, name: str) -> dict[str, Ints]:
        places = {key: place for key, place in self.header[name].items() if isinstance(place[0], str)}
        return {
            key: column(self.content, place) for key, place in places.items() if place[0] in ("i1", "i2", "i4", "f8")
        }

    def over_time(self, begin: Ints, count: Ints, size: Ints) -> Ints:
        """Bytes that are there at each shown moment, summed as the page's script sums them."""
        changes = np.zeros(self.header["count"] + 1, np.int64)
        np.add.at(changes, begin, size)
        np.add.at(changes, begin + count, -size)
        return np.cumsum(changes)[:-1]

    def category(self, category: Category) -> Ints:
        table = self.table("allocations")
        chosen = table["category"] == category
        return self.over_time(table["begin"][chosen], table["count"][chosen], table["requested"][chosen])

    @property
    def allocated(self) -> Ints:
        table = self.table("allocations")
        block = -(-table["requested"] // 512) * 512 + table["extra"]
        return self.over_time(table["begin"], table["count"], block)

    @property
    def reserved(self) -> Ints:
        table = self.table("segments")
        return self.over_time(table["begin"], table["count"], table["size"])

    @property
    def rows(self) -> Ints:
        return self.table("moments")["row"]


def shown(result: MemoryResult) -> list[ShownDevice]:
    """The devices of a result's page."""
    header, columns = payload(result)
    read, content = unpacked(columns.packed(header))
    return [ShownDevice(each, content) for each in read["devices"]]


def header_of(path: Path) -> dict[str, Any]:
    """The header of a page that was written to a file."""
    found = re.search(r'id="data">([^<]*)<', path.read_text(encoding="utf-8"))
    assert found is not None
    header, _ = unpacked(found[1])
    return header
