"""Opens the file of ``torch.cuda.memory._dump_snapshot``, whoever wrote it. Runs nothing that is in it.

The file is a pickle, and a pickle is a program: opened with ``pickle.load`` it may call anything, and one that calls
nothing can still claim any memory and work without end. A snapshot needs only dicts, lists, texts, numbers, None and
pairs of numbers, none of which has to be looked up by name. So two things stand before the data: a grammar of the
opcodes that write these, and an unpickler that looks nothing up.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import re
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from ..errors import SnapshotError, shortened, shown
from ..results import files
from ..sizes import format_size, parse_size

_ADVICE = "Write it again with torch.cuda.memory._dump_snapshot(path)"

# The opcodes of plain data whose length is known, the most frequent ones first.
_MEMO_AND_CONTAINERS = rb"[hq].|[(\]}aeus)\x94]|j.{4}"
# A tuple is a private pool's id: one to three numbers, and no other thing. To hash a key of tuples in tuples in tuples
# would take time without end.
_SMALL = rb"(?:\x95.{8})?(?:K.|M..|J.{4})"  # a frame may end anywhere, inside of a tuple too
_END = rb"(?:\x95.{8})?"
_TUPLE = rb"(?:(?=[KMJ\x85\x95])(?:%s\x85|%s(?:%s\x86|%s%s\x87)))?" % (_END, _SMALL, _END, _SMALL, _END)
_SMALL_OR_TUPLE = rb"K.%s|M..%s|J.{4}%s" % (_TUPLE, _TUPLE, _TUPLE)
# Whole numbers have at most 64 bits. Of longer ones any number could be alike in the eyes of a dict, and make it slow.
_SIZED = b"|".join(b"\\x%02x.{%d}" % (size, size) for size in (6, 5, 7, 8, 4, 3, 2, 1))
_LARGE = rb"\x8a(?:%s|\x00|\x09.{8}\x00)" % _SIZED
_OTHER = rb"[N\x88\x89]|G.{8}"
_AT_ONCE = 1024  # opcodes; the regular expression remembers something of each

_LENGTH_WIDTHS = {b"\x8c": 1, b"X": 4, b"C": 1, b"B": 4}  # of texts and bytes: how wide their length is written
_FIXED_WIDTHS = {b"\x80": 2, b"\x95": 9}  # the protocol, and the size of a frame, which only speeds reading up
_LOOK_UPS = frozenset({b"c", b"i", b"\x93", b"P", b"Q"})  # all end in one of the two methods of `_PlainUnpickler`
_CONTAINERS = (b"}", b"]", b"\x85", b"\x86", b"\x87")
_CONTAINER_BYTES = 80


_IN_WORDS = {
    "LONG1": "a number of more than 64 bits",
    "LONG4": "a number of more than 64 bits",
    "LONG_BINPUT": "more remembered objects than the file has bytes",
    **dict.fromkeys(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), "a tuple that is not the private pool of something"),
}
_OPCODES = {opcode.code: opcode.name for opcode in pickletools.opcodes}
# What acts on objects that only a look-up brings, or that other programs registered.
_ACTIVE_OPCODES = frozenset(
    {"REDUCE", "BUILD", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
)


class _Refused(pickle.UnpicklingError):
    """The file asks for something that no snapshot needs."""


class _PlainUnpickler(pickle.Unpickler):
    """Plain data only. Every callable and every class that a pickle can use must come through one of these two."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise _Refused(f"it wants {module}.{name}")

    def persistent_load(self, pid: object) -> NoReturn:
        raise _Refused("it wants an object from outside")


def load_snapshot(path: str | os.PathLike[str], *, max_bytes: int | str = files.MAX_BYTES) -> dict[str, Any]:
    """Read a snapshot of torch's allocator from a file, safely.

    ::

        snapshot = load_snapshot("oom.pickle")
        snapshot["segments"][0]["total_size"]

    Args:
        path: a file that ``torch.cuda.memory._dump_snapshot`` wrote, or ``pickle`` of what ``_snapshot()`` or
            ``torch.cuda.memory_snapshot()`` returned.
        max_bytes: how much it may unpack to, in bytes or as a text: the file, and its dicts, lists and tuples.

    Returns:
        The snapshot as torch gave it: plain containers, numbers and strings, ``"segments"`` and ``"device_traces"``
        among the keys; a list is taken for segments without a trace. One object may be in it many times, in itself
        even.

    Raises:
        SnapshotError: the file is not a snapshot, is damaged, unpacks to more, or would run code if it were opened as
            usual.
        OSError: it can't be read.

    Known limitations: what is in the containers (numbers, texts) is not counted; the whole takes some ten times the
    file's size.
    """
    name = shortened(Path(path).name)
    limit = parse_size(max_bytes)
    try:
        data = files.read(path, limit)
        _check_opcodes(data, limit)
        snapshot = _PlainUnpickler(io.BytesIO(data)).load()
    except files.TooLargeError as error:
        raise too_large(f"The snapshot {name!r} was opened", limit) from error
    except _Refused as error:
        raise SnapshotError(
            f"The snapshot {name!r} was opened",
            shortened(str(error)),
            "A snapshot is plain data; this file would run code of its writer's choice",
            f"Do not open it with pickle either. {_ADVICE}",
        ) from None
    except OSError:
        raise
    except Exception as error:  # damaged pickles raise almost anything: EOFError, KeyError, TypeError, MemoryError, ...
        raise SnapshotError(
            f"The snapshot {name!r} was opened",
            f"it is damaged, or no pickle of plain data ({type(error).__name__}: {shortened(str(error))})",
            instead=_ADVICE,
        ) from error
    if isinstance(snapshot, list) and snapshot:  # of memory_snapshot()
        snapshot = {"segments": snapshot, "device_traces": []}
    if not _is_snapshot(snapshot):
        raise SnapshotError(
            f"The snapshot {name!r} was opened",
            f"it is a pickle of {_describe(snapshot)}",
            "A snapshot is a dict with the lists 'segments' and 'device_traces'",
            _ADVICE,
        )
    return snapshot  # type: ignore[no-any-return]  # what it is was just checked


def too_large(asked: str, limit: int) -> SnapshotError:
    """What to tell of a file that unpacks to more than was allowed."""
    return SnapshotError(
        asked,
        f"it unpacks to more than {format_size(limit)}",
        "A file can claim any size, so there is a limit",
        "If you know whose it is, give a larger max_bytes (--max-bytes), such as '16 GiB'",
    )


def _check_opcodes(data: bytes, limit: int) -> None:
    """See that a pickle is made of opcodes that plain data needs, up to its end or to where it looks something up."""
    containers = sum(map(data.count, _CONTAINERS))  # and other bytes of these values: some too many
    if len(data) + _CONTAINER_BYTES * containers > limit:
        raise files.TooLargeError
    plain = _plain_opcodes(len(data))
    at = 0
    while (code := data[at : at + 1]) != b".":
        if found := plain.match(data, at):
            at = found.end()
        elif code in _LENGTH_WIDTHS:
            begin = at + 1 + _LENGTH_WIDTHS[code]
            at = begin + int.from_bytes(data[at + 1 : begin], "little")
        elif code in _FIXED_WIDTHS:
            at += _FIXED_WIDTHS[code]
        elif code in _LOOK_UPS:
            return  # what follows is not reached
        elif not code:
            raise EOFError("it ends in the middle")
        else:
            _refuse(code)


def _plain_opcodes(size: int) -> re.Pattern[bytes]:
    """Opcodes that can be passed over without a look at them.

    Args:
        size: of the file. The unpickler makes room for as many objects as the highest index at which one is
            remembered, so none may be much higher than what a file of that size can number.
    """
    high = min(size >> 16, 0xFFFF)
    third = b"[\\x00-\\x%02x]" % min(high, 0xFF)
    fourth = b"[\\x00-\\x%02x]" % (high >> 8)
    put = rb"r..%s%s" % (third, fourth)
    opcodes = b"|".join((_MEMO_AND_CONTAINERS, _SMALL_OR_TUPLE, _LARGE, _OTHER, put))
    return re.compile(rb"(?:%s){1,%d}" % (opcodes, _AT_ONCE), re.DOTALL)


def _refuse(code: bytes) -> NoReturn:
    name = _OPCODES.get(code.decode("latin-1"), f"the byte {code.hex()}")
    if name in _ACTIVE_OPCODES:
        raise _Refused(f"it wants {name}")
    raise pickle.UnpicklingError(f"{_IN_WORDS.get(name, name)} can't be in a snapshot")


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
        return f"a dict with the keys {', '.join(map(shown, islice(value, 6))) or '(none)'}"
    return f"a {type(value).__name__}"
