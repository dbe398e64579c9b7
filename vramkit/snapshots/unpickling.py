"""Opens the file of ``torch.cuda.memory._dump_snapshot``, whoever wrote it. Runs nothing that is in it.

The file is a pickle, and a pickle is a program: opened with ``pickle.load`` it may call anything. A snapshot needs
only dicts, lists, tuples, numbers, strings and None, none of which has to be looked up by name, so the unpickler here
looks nothing up.
"""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any, NoReturn

from ..errors import SnapshotError, printable

_ADVICE = "Write it again with torch.cuda.memory._dump_snapshot(path)"

# What can bring something other than plain data onto the stack, or act on it.
_ACTIVE_OPCODES = frozenset(
    {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"}
    | {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER"}
)


class _Refused(pickle.UnpicklingError):
    """The file asks for something that no snapshot needs."""


class _PlainUnpickler(pickle.Unpickler):
    """Plain data only. Every callable and every class that a pickle can use must come through one of these two."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise _Refused(f"it wants {module}.{name}")

    def persistent_load(self, pid: object) -> NoReturn:
        raise _Refused("it wants an object from outside")


def load_snapshot(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a snapshot of torch's allocator from a file, safely.

    ::

        snapshot = load_snapshot("oom.pickle")
        snapshot["segments"][0]["total_size"]

    Args:
        path: a file that ``torch.cuda.memory._dump_snapshot`` or ``torch.cuda.memory._snapshot`` plus ``pickle`` wrote.

    Returns:
        The snapshot as torch gave it: plain containers, numbers and strings, ``"segments"`` and ``"device_traces"``
        among the keys.

    Raises:
        SnapshotError: the file is not a snapshot, is damaged, or would run code if it were opened as usual.
        OSError: it can't be read.

    Known limitations: a file made to be malicious can still ask for more memory than there is.
    """
    name = Path(path).name
    data = Path(path).read_bytes()
    try:
        # Extension codes that were used before come out of a cache, past find_class. Nobody registers any in practice;
        # where somebody did, every opcode is looked at first, which is slow.
        if copyreg._extension_registry:  # type: ignore[attr-defined]  # noqa: SLF001 - no other way
            _refuse_active(data)
        snapshot = _PlainUnpickler(io.BytesIO(data)).load()
    except _Refused as error:
        raise SnapshotError(
            f"The snapshot {name!r} was opened",
            printable(str(error)),
            "A snapshot is plain data; this file would run code of its writer's choice",
            f"Do not open it with pickle either. {_ADVICE}",
        ) from None
    except Exception as error:  # damaged pickles raise almost anything: EOFError, KeyError, TypeError, MemoryError, ...
        raise SnapshotError(
            f"The snapshot {name!r} was opened",
            f"it is damaged, or no pickle at all ({type(error).__name__}: {printable(str(error))})",
            instead=_ADVICE,
        ) from error
    if not _is_snapshot(snapshot):
        raise SnapshotError(
            f"The snapshot {name!r} was opened",
            f"it is a pickle of {_describe(snapshot)}",
            "A snapshot is a dict with the lists 'segments' and 'device_traces'",
            _ADVICE,
        )
    return snapshot  # type: ignore[no-any-return]  # what it is was just checked


def _refuse_active(data: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in _ACTIVE_OPCODES:
            raise _Refused(f"it wants {opcode.name} {argument or ''}".strip())


def _is_snapshot(value: object) -> bool:
    """Two lists of dicts, as deep as a reader looks before it says what is missing."""
    if not isinstance(value, dict):
        return False
    segments, traces = value.get("segments"), value.get("device_traces")
    return (
        isinstance(segments, list)
        and all(isinstance(segment, dict) for segment in segments)
        and isinstance(traces, list)
        and all(isinstance(trace, list) and all(isinstance(entry, dict) for entry in trace) for trace in traces)
    )


def _describe(value: object) -> str:
    if isinstance(value, dict):
        return f"a dict with the keys {', '.join(map(repr, list(value)[:6])) or '(none)'}"
    return f"a {type(value).__name__}"
