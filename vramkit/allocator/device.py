"""Where segments come from: a device's memory and its address space. Knows no blocks."""

from __future__ import annotations

from bisect import bisect_left
from typing import Literal, Protocol

from ..errors import UsageError

AddressOrder = Literal["falling", "rising"]

GRANULE = 2 << 20
"""Bytes: what CUDA's driver aligns segments to, and counts them in."""

_BASE = 0x7F00_0000_0000  # some place in the upper half of the user's 47 bits, as CUDA's own addresses are
_SPAN = 126 << 40  # bytes from there to either end


class AddressSpace(Protocol):
    """Answers where a new segment lies. A test gives recorded answers, a prediction those of `Addresses`."""

    def take(self, size: int) -> int | None:
        """Address of a new segment, or of a new expandable segment's whole range, of ``size`` bytes; None: no room."""

    def give_back(self, address: int, size: int) -> None:
        """The range is free again."""


class Addresses:
    """An address space that is used from one end, gaps first.

    Drivers give no fixed order: new segments mostly lie below all others, sometimes above. Best fit takes the lowest
    of equally large blocks, so the order can matter, rarely: of 35 recorded programs one reserves another amount
    when the order is turned round (`layerwise-compression`, 5,534 and 5,926 MiB).

    Args:
        order: "falling": each new segment lies in the highest gap that is large enough; "rising": in the lowest.
    """

    def __init__(self, order: AddressOrder = "falling") -> None:
        if order not in ("falling", "rising"):
            raise UsageError(
                "An order of addresses was expected", f"got {order!r}", instead="Write 'falling' or 'rising'"
            )
        self.order = order
        self._gaps = [(_BASE - _SPAN, _BASE)] if order == "falling" else [(_BASE, _BASE + _SPAN)]

    def take(self, size: int) -> int | None:
        size = -(-size // GRANULE) * GRANULE
        falling = self.order == "falling"
        places = range(len(self._gaps) - 1, -1, -1) if falling else range(len(self._gaps))
        for place in places:
            start, end = self._gaps[place]
            if end - start >= size:
                address = end - size if falling else start
                rest = (start, address) if falling else (start + size, end)
                self._gaps[place : place + 1] = [rest] if rest[0] < rest[1] else []
                return address
        return None

    def give_back(self, address: int, size: int) -> None:
        size = -(-size // GRANULE) * GRANULE
        place = bisect_left(self._gaps, (address, 0))
        first, last = place, place
        start, end = address, address + size
        if place and self._gaps[place - 1][1] == start:
            first, start = place - 1, self._gaps[place - 1][0]
        if place < len(self._gaps) and self._gaps[place][0] == end:
            last, end = place + 1, self._gaps[place][1]
        self._gaps[first:last] = [(start, end)]


class DriverMemory:
    """The memory of one device, as its driver hands it out.

    Args:
        capacity: bytes of the device; None: without end.
        context: bytes of it that the CUDA context, libraries and other processes take.
    """

    def __init__(self, capacity: int | None, context: int) -> None:
        self.capacity = capacity
        self.context = context
        self.used = 0
        """Bytes in segments and pages, in whole granules."""

    @property
    def free(self) -> int | None:
        """Bytes that ``torch.cuda.mem_get_info()`` would call free; None: without end."""
        return None if self.capacity is None else max(self.capacity - self.context - self.used, 0)

    def take(self, size: int) -> bool:
        """Use bytes of the device; False: there are not enough."""
        size = -(-size // GRANULE) * GRANULE
        if self.free is not None and size > self.free:
            return False
        self.used += size
        return True

    def give_back(self, size: int) -> None:
        """Use them no more."""
        self.used -= -(-size // GRANULE) * GRANULE
