"""The rule by which CUDA's driver gives addresses, as far as one card has shown it. Knows no torch."""

from __future__ import annotations

from bisect import insort

GRANULE, CHUNK = 2 << 20, 32 << 20

Gap = tuple[int, int]
"""Bytes, address."""


class Chunks:
    """Segments of a driver's address space.

    The newest chunk that has room is used, and in it the smallest gap that is large enough. Where none has room, a
    chunk of whole 32 MiB is taken from the upper end of the highest gap between chunks that is larger than it. A
    chunk in which nothing is left goes.

    Args:
        top: where the first chunk ends.
        left: gaps in chunks of the context's own, which stay; the newest comes last.
    """

    def __init__(self, top: int, left: tuple[Gap, ...]) -> None:
        self._between = [(0, top)]  # start and end of what no chunk has, in order
        self._chunks: dict[int, list[Gap]] = {start: [(size, start)] for size, start in left}
        self._sizes: dict[int, int] = {}  # of those that can go
        self._homes: dict[int, int] = {}

    def take(self, size: int) -> int:
        size = -(-size // GRANULE) * GRANULE
        places = ((chunk, gap) for chunk, gaps in reversed(self._chunks.items()) for gap in gaps if gap[0] >= size)
        chunk, gap = next(places, None) or self._open(-(-size // CHUNK) * CHUNK)
        room, address = gap
        self._chunks[chunk].remove(gap)
        if room > size:
            insort(self._chunks[chunk], (room - size, address + size))
        self._homes[address] = chunk
        return address

    def give_back(self, address: int, size: int) -> None:
        size = -(-size // GRANULE) * GRANULE
        chunk = self._homes.pop(address)
        gaps = self._chunks[chunk]
        start, end = address, address + size
        for gap in [gap for gap in gaps if sum(gap) == start or gap[1] == end]:
            gaps.remove(gap)
            start, end = min(start, gap[1]), max(end, sum(gap))
        insort(gaps, (end - start, start))
        if gaps == [(self._sizes.get(chunk), chunk)]:
            del self._chunks[chunk]
            self._close(chunk, chunk + self._sizes.pop(chunk))

    def _open(self, size: int) -> tuple[int, Gap]:
        place = max(at for at, (start, end) in enumerate(self._between) if end - start > size)
        start, end = self._between[place]
        self._between[place] = (start, end - size)
        self._chunks[end - size] = [(size, end - size)]
        self._sizes[end - size] = size
        return end - size, (size, end - size)

    def _close(self, start: int, end: int) -> None:
        for gap in [gap for gap in self._between if start in gap or end in gap]:
            self._between.remove(gap)
            start, end = min(start, gap[0]), max(end, gap[1])
        insort(self._between, (start, end))
