"""Results in a file: numpy's zip of plain arrays with one JSON text inside. Opening one runs no code.

Format 6. ``meta`` is JSON as UTF-8 bytes: ``{"format": 6, "kind": "Profile", "devices": [{...}, ...]}``; the tables of
the n-th device are the arrays ``n.events``, ``n.allocations``, ``n.segments`` and ``n.passes``. What a kind of result
has besides, is in ``particulars``, of which only that kind knows what it means. Of a device whose stacks were recorded
there are ``frames`` in ``meta``, and the arrays ``n.stacks`` and ``n.stack_of``. Format 1 lacks the columns ``pool``;
format 2 the categories after ``OTHER``, the phase ``EVALUATION``, and what was evaluated; format 3 the column
``forward``, and ``n.passes``; format 4 the column ``operator``, and ``operators`` in ``meta``; format 5 the columns
``is_source`` and ``optimizer``, and ``optimizers`` in ``meta``. Where a device says nothing of ``tie_break``, it was
"age"; where nothing of ``knows_phases`` and ``is_window``, it was true and false.

Knows the whole format, and no kind of result.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.lib import format as npy

from ..tape.events import ALLOCATION, EVENT, PASS, SEGMENT, Table, Tape
from ..tape.memory import MemoryResult
from ..tape.stacks import STACK, Stacks
from .checks import (
    DamagedError,
    boolean,
    check_optimizers,
    check_stacks,
    check_tables,
    device_name,
    evaluations_of,
    frames_of,
    integer,
    items,
    modules_of,
    nccl_of,
    record,
    text,
    texts,
    tie_break,
)
from .files import TooLargeError, replacing

FORMAT = 6

_TABLES = {"events": EVENT, "allocations": ALLOCATION, "segments": SEGMENT, "passes": PASS}
_SINCE = {"pool": 2, "forward": 4, "operator": 5, "is_source": 6, "optimizer": 6}
"""The formats from which on tables have these columns."""
_MAX_DEVICES = 1024
_MAX_DIGITS = 20
_MAX_HEADER = 4096  # of a table, in bytes: it names the columns
_OBJECTS = 30  # bytes that Python's objects take at most for a byte of JSON


class UnknownFormatError(Exception):
    """A file is of a format that this vramkit does not know.

    Args:
        number: of the format.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What is in a file. All of it was checked, but for the particulars."""

    kind: str
    """Name of the class that was saved."""
    devices: tuple[MemoryResult, ...]
    """At least one."""
    particulars: Mapping[str, object] | None
    """What JSON could carry of a kind of result that has more than a profile."""


def save(result: MemoryResult, path: str | PathLike[str], particulars: Mapping[str, object] | None = None) -> None:
    """Write a result to a file; see `MemoryResult.save`.

    Args:
        result: whose tapes are written.
        path: of the file.
        particulars: what JSON can carry, of a kind of result that has more than a profile.
    """
    arrays: dict[str, Any] = {}
    devices = []
    for number, one in enumerate(result.each_device()):
        arrays |= {f"{number}.{table}": getattr(one.tape, table) for table in _TABLES}
        stacks = one.tape.stacks
        if stacks is not None:
            arrays |= {f"{number}.stacks": stacks.table, f"{number}.stack_of": stacks.of}
        devices.append(
            {
                "device": one.device,
                "device_name": one.device_name,
                "capacity": one.capacity,
                "outside": one.outside,
                "nccl": None if one.nccl is None else asdict(one.nccl),
                "versions": one.versions,
                "notes": list(one.notes),
                "alloc_conf": one.tape.alloc_conf,
                "tie_break": one.tape.tie_break,
                "knows_phases": one.tape.knows_phases,
                "is_window": one.tape.is_window,
                "modules": [asdict(module) for module in one.tape.modules],
                "names": list(one.tape.names),
                "operators": list(one.tape.operators),
                "evaluations": [asdict(each) for each in one.tape.evaluations],
                "optimizers": [sorted(names) for names in one.tape.optimizers],
                "frames": None if stacks is None else [[*astuple(frame)] for frame in stacks.frames],
            }
        )
    meta = {"format": FORMAT, "kind": type(result).__name__, "devices": devices, "particulars": particulars}
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    buffer = io.BytesIO()  # a zip can't be written to a pipe
    np.savez_compressed(buffer, **arrays)
    with replacing(path) as file:
        file.write(buffer.getbuffer())


def read(content: bytes, max_bytes: int) -> Saved:
    """What `save` wrote, from the bytes of the file.

    Raises:
        TooLargeError: it would unpack to more than ``max_bytes``.
        UnknownFormatError: it is of a format that is not known here.
        Exception: any, if it is damaged or something else; a `DamagedError` says what is wrong in words.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        reader = _Reader(archive, max_bytes)
        meta = record(reader.meta(), "the contents")
        number = integer(meta.get("format"), "the format", maximum=1 << 31)
        if not 1 <= number <= FORMAT:
            raise UnknownFormatError(number)
        devices = items(meta.get("devices"), "the devices", _MAX_DEVICES)
        if not devices:
            raise DamagedError("it has no devices")
        particulars = meta.get("particulars")  # older files have none
        return Saved(
            kind=text(meta.get("kind"), "the kind of result"),
            devices=tuple(reader.device(i, record(each, "a device"), number) for i, each in enumerate(devices)),
            particulars=None if particulars is None else record(particulars, "the particulars"),
        )


class _Reader:
    """Takes an archive apart, as long as what it unpacks to is within a limit."""

    def __init__(self, archive: zipfile.ZipFile, max_bytes: int) -> None:
        self._archive = archive
        self._left = max_bytes

    def device(self, number: int, saved: dict[str, object], format_number: int) -> MemoryResult:
        tables = {}
        for name, dtype in _TABLES.items():
            if name == "passes" and format_number < _SINCE["forward"]:
                tables[name] = np.zeros(0, dtype)
                continue
            columns = _columns_in(format_number, dtype)
            table = self._array(f"{number}.{name}", columns)
            tables[name] = table if columns == dtype else _completed(table, dtype)
        modules = modules_of(saved["modules"])
        names = texts(saved["names"], "the names")
        operators = texts(saved.get("operators", []), "the operators")
        optimizers = tuple(
            frozenset(texts(each, "an optimizer's parameters"))
            for each in items(saved.get("optimizers", []), "the optimizers")
        )
        check_tables(tables, len(modules), len(names), len(operators))
        check_optimizers(tables["passes"], len(optimizers))
        versions = record(saved["versions"], "the versions")
        tape = Tape(
            **tables,
            modules=modules,
            names=names,
            operators=operators,
            evaluations=evaluations_of(saved.get("evaluations", []), len(modules)),
            optimizers=optimizers,
            device=device_name(saved["device"]),
            alloc_conf=text(saved["alloc_conf"], "the allocator's settings"),
            stacks=self._stacks(number, saved.get("frames"), len(tables["allocations"])),
            tie_break=tie_break(saved.get("tie_break", "age")),
            knows_phases=boolean(saved.get("knows_phases", True), "whether phases are known"),
            is_window=boolean(saved.get("is_window", False), "whether its beginning is missing"),
        )
        return MemoryResult(
            tape=tape,
            device_name=text(saved["device_name"], "the device's name"),
            capacity=integer(saved["capacity"], "the capacity"),
            outside=integer(saved["outside"], "the memory outside of the allocator"),
            nccl=nccl_of(saved.get("nccl")),
            versions={key: text(value, "a version") for key, value in versions.items()},
            notes=texts(saved["notes"], "the notes"),
        )

    def _stacks(self, number: int, frames: object, allocations: int) -> Stacks | None:
        if frames is None:
            return None
        stacks = Stacks(
            frames=frames_of(frames),
            table=self._array(f"{number}.stacks", STACK),
            of=self._array(f"{number}.stack_of", np.dtype("<i4")).view(np.int32),
        )
        check_stacks(stacks, allocations)
        return stacks

    def meta(self) -> object:
        content = self._array("meta", np.dtype("u1"), takes=_OBJECTS).tobytes()
        return json.loads(content.decode(), parse_int=_whole_number)

    def _array(self, name: str, dtype: np.dtype[Any], takes: int = 1) -> Table:
        """One array, with exactly the columns that are expected: no header of a file decides what is made."""
        info = self._archive.getinfo(f"{name}.npy")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DamagedError("it is compressed in another way than vramkit's")
        self._left -= info.file_size * takes
        if self._left < 0:
            raise TooLargeError
        with self._archive.open(info) as file:  # gives no more than file_size
            if npy.read_magic(file) != (1, 0):
                raise DamagedError(f"the table {name!r} is of another format than vramkit's")
            shape, _, found = npy.read_array_header_1_0(file, max_header_size=_MAX_HEADER)
            size = info.file_size - file.tell()
            if found != dtype or len(shape) != 1 or shape[0] * dtype.itemsize != size:
                raise DamagedError(f"the table {name!r} has the wrong columns")
            content = bytearray(file.read())
        return np.frombuffer(content, dtype)


def _whole_number(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise DamagedError(f"a number in it has {len(digits):,} digits")
    return int(digits)


def _columns_in(number: int, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """A table's columns in a format."""
    names = [name for name in dtype.names or () if _SINCE.get(name, 0) <= number]
    return dtype if len(names) == len(dtype.names or ()) else np.dtype([(name, dtype[name]) for name in names])


def _completed(table: Table, dtype: np.dtype[Any]) -> Table:
    """An older table with the columns that it lacks: nothing is known of what they would say."""
    wide = np.zeros(table.shape, dtype)
    for name in table.dtype.names or ():
        wide[name] = table[name]
    return wide
