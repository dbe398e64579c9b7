"""Results in a file: numpy's zip of plain arrays with one JSON text inside. Opening one runs no code.

Format 2. ``meta`` is JSON as UTF-8 bytes: ``{"format": 2, "kind": "Profile", "devices": [{...}, ...]}``; the tables of
the n-th device are the arrays ``n.events``, ``n.allocations`` and ``n.segments``. What a kind of result has besides, is
in ``particulars``, of which only that kind knows what it means. Format 1 lacks the columns ``pool``.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from os import PathLike
from typing import Any

import numpy as np

from ..tape.events import ALLOCATION, EVENT, SEGMENT, Table
from ..tape.memory import MemoryResult

FORMAT = 2


class DamagedError(Exception):
    """What is wrong with a file, in words of this module."""


TABLES = {"events": EVENT, "allocations": ALLOCATION, "segments": SEGMENT}


def save(result: MemoryResult, path: str | PathLike[str], particulars: dict[str, Any] | None = None) -> None:
    """Write a result to a file; see `MemoryResult.save`.

    Args:
        result: whose tapes are written.
        path: of the file.
        particulars: what JSON can carry, of a kind of result that has more than a profile.
    """
    each = list(result.each_device())
    arrays: dict[str, Any] = {}
    devices = []
    for number, one in enumerate(each):
        arrays |= {f"{number}.{table}": getattr(one.tape, table) for table in TABLES}
        devices.append(
            {
                "device": one.device,
                "device_name": one.device_name,
                "capacity": one.capacity,
                "outside": one.outside,
                "versions": one.versions,
                "notes": list(one.notes),
                "alloc_conf": one.tape.alloc_conf,
                "modules": [asdict(module) for module in one.tape.modules],
                "names": list(one.tape.names),
            }
        )
    meta = {"format": FORMAT, "kind": type(result).__name__, "devices": devices, "particulars": particulars}
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    # Through a buffer: numpy would append ".npz" to a path, and a full disk would leave half a file under its name.
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    with open(path, "wb") as file:
        file.write(buffer.getvalue())


def with_pools(table: Table) -> Table:
    """A table of format 1 with the column that it lacks: nothing in it is known to be in a private pool."""
    wide = np.zeros(table.shape, [*table.dtype.descr, ("pool", EVENT["pool"])])
    for name in table.dtype.names or ():
        wide[name] = table[name]
    return wide


def check(tables: dict[str, Table], modules: int, names: int) -> None:
    """A table that points outside another would fail later, far from the file that is to blame."""
    events, allocations = tables["events"], tables["allocations"]
    for what, column, limit in (
        ("events.module", events["module"], modules),
        ("events.allocation", events["allocation"], len(allocations)),
        ("allocations.module", allocations["module"], modules),
        ("allocations.name", allocations["name"], names),
        ("allocations.born", allocations["born"], len(events)),
        ("allocations.died", allocations["died"], len(events)),
    ):
        if len(column) and (column.max() >= limit or column.min() < -1):
            raise DamagedError(f"the column {what} points outside its table")
    for what, column, limit in (
        ("events.action", events["action"], 8),
        ("events.phase", events["phase"], 5),
        ("allocations.phase", allocations["phase"], 5),
        ("allocations.category", allocations["category"], 9),
    ):
        if len(column) and column.max() >= limit:
            raise DamagedError(f"the column {what} has an unknown code")
