"""What a shared library asks of others: the names it imports. Reads ELF files of 64 bit, little endian; runs nothing.

Enough of a reader to do without binutils: the build of the virtual GPU then needs nothing but a C compiler.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_DYNAMIC_SYMBOLS = 11  # SHT_DYNSYM
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")


def imported_names(path: Path) -> set[str]:
    """The symbols that a shared library imports.

    Args:
        path: the library.

    Returns:
        Names without their versions; none if the file is not an ELF file of 64 bit, little endian.
    """
    with path.open("rb") as file:
        if file.read(6) != b"\x7fELF\x02\x01":
            return set()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return {name.decode("ascii", "replace") for name in _undefined(data)}


def _undefined(data: mmap.mmap) -> set[bytes]:
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [_SECTION.unpack_from(data, table + index * size) for index in range(count)]
    names = set()
    for _, kind, _, _, offset, length, link, _, _, _ in sections:
        if kind != _DYNAMIC_SYMBOLS:
            continue
        strings = sections[link][4]
        for name, _, _, home, _, _ in _SYMBOL.iter_unpack(data[offset : offset + length]):
            if home == 0 and name:  # home 0: defined elsewhere
                start = strings + name
                names.add(data[start : data.find(b"\0", start)])
    return names
