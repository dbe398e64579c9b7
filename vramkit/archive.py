"""Results in a file: numpy's zip of plain arrays with one JSON text inside. Opening one runs no code.

Format 2. ``meta`` is JSON as UTF-8 bytes: ``{"format": 2, "kind": "Profile", "devices": [{...}, ...]}``; the tables of
the n-th device are the arrays ``n.events``, ``n.allocations`` and ``n.segments``. What a kind of result has besides, is
in ``particulars``, of which only that kind knows what it means. Format 1 lacks the columns ``pool``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import SnapshotError
from .events import ALLOCATION, EVENT, SEGMENT, Module, Table, Tape
from .result import MemoryResult, Profile

if TYPE_CHECKING:
    from .estimate_result import Estimate

FORMAT = 2


class _DamagedError(Exception):
    """What is wrong with a file, in words of this module."""


_TABLES = {"events": EVENT, "allocations": ALLOCATION, "segments": SEGMENT}


def save(result: MemoryResult, path: str | PathLike[str], particulars: dict[str, Any] | None = None) -> None:
    """Write a result to a file; see `MemoryResult.save`.

    Args:
        result: whose tapes are written.
        path: of the file.
        particulars: what JSON can carry, of a kind of result that has more than a profile.
    """
    each = list(result.each_device()) if isinstance(result, Profile) else [result]
    arrays: dict[str, Any] = {}
    devices = []
    for number, one in enumerate(each):
        arrays |= {f"{number}.{table}": getattr(one.tape, table) for table in _TABLES}
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


def load(path: str | PathLike[str]) -> Profile | Estimate:
    """Open what ``save`` of a profile or an estimate wrote.

    ::

        profile = vramkit.load("step.npz")
        print(profile)

    Args:
        path: of the file.

    Returns:
        A result equal to the one that was saved, in every table and figure. An estimate can't run its program again.

    Raises:
        SnapshotError: the file is damaged, is something else, or was written by a newer vramkit.
        OSError: there is no such file, or it can't be read.
    """
    with open(path, "rb") as file:
        content = file.read()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            meta = json.loads(bytes(archive["meta"]).decode())
            version = meta["format"]
            if version == FORMAT:
                return _read(meta, archive.__getitem__)
            if version == 1:
                return _read(meta, lambda name: _with_pools(archive[name]))
    except Exception as error:  # what a damaged file makes zipfile, zlib, numpy and json raise is anything
        raise SnapshotError(
            f"{path} was opened as a saved profile",
            f"it can't be read: {error if isinstance(error, _DamagedError) else type(error).__name__}",
            "It is damaged, or is not what vramkit saved",
            "Save the profile again with profile.save(path)",
        ) from error
    raise SnapshotError(
        f"{path} was opened as a saved profile",
        f"it is of format {version!r}, and this vramkit reads formats 1 to {FORMAT}",
        instead="Open it with the vramkit that wrote it, or a newer one",
    )


def _read(meta: dict[str, Any], table: Callable[[str], Table]) -> Profile | Estimate:
    profiles = [_profile(each, number, table) for number, each in enumerate(meta["devices"])]
    first, *others = profiles
    if meta["kind"] == "Estimate" and meta.get("particulars"):  # older files have none, and are opened as profiles
        from .estimate_result import restored

        return restored(first, meta["particulars"])
    return replace(first, others=tuple(others))


def _with_pools(table: Table) -> Table:
    """A table of format 1 with the column that it lacks: nothing in it is known to be in a private pool."""
    wide = np.zeros(table.shape, [*table.dtype.descr, ("pool", EVENT["pool"])])
    for name in table.dtype.names or ():
        wide[name] = table[name]
    return wide


def _profile(each: dict[str, Any], number: int, table: Callable[[str], Table]) -> Profile:
    tables = {}
    for name, dtype in _TABLES.items():
        tables[name] = table(f"{number}.{name}")
        if tables[name].dtype != dtype or tables[name].ndim != 1:
            raise _DamagedError(f"the table {name!r} has the wrong columns")
    modules = tuple(Module(**{**module, "output_shape": tuple(module["output_shape"])}) for module in each["modules"])
    names = tuple(map(str, each["names"]))
    _check(tables, len(modules), len(names))
    tape = Tape(**tables, modules=modules, names=names, device=str(each["device"]), alloc_conf=str(each["alloc_conf"]))
    return Profile(
        tape=tape,
        device_name=str(each["device_name"]),
        capacity=int(each["capacity"]),
        outside=int(each["outside"]),
        versions={str(key): str(value) for key, value in each["versions"].items()},
        notes=tuple(map(str, each["notes"])),
    )


def _check(tables: dict[str, Table], modules: int, names: int) -> None:
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
            raise _DamagedError(f"the column {what} points outside its table")
    for what, column, limit in (
        ("events.action", events["action"], 8),
        ("events.phase", events["phase"], 5),
        ("allocations.phase", allocations["phase"], 5),
        ("allocations.category", allocations["category"], 9),
    ):
        if len(column) and column.max() >= limit:
            raise _DamagedError(f"the column {what} has an unknown code")
