"""From a batch size that is too large down to one that fits, by what was measured on the way. Pure arithmetic: knows
sizes and bytes, neither torch nor what is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Bytes = Mapping[int, int]
"""Bytes by device number."""

_MARGIN = 1 / 128
"""Part of the capacity that a line through two sizes may miss the memory by: segments are of 2 MiB and more."""

_FIRST = 32
"""The first size to be measured is this part of what ran out: a failure says less than a size that is too small."""

_FAR = 4
"""A line through two sizes is not followed further than to so many times the larger one."""

_MANY = 100
"""From here on one row fewer is no loss, and a size that was stopped need not be called again. Below, it is."""


@dataclass
class Descent:
    """Which size to try next.

    What can be learnt depends on the program. One that trains is measured for two steps at a time: at a small size,
    then at one that fits if memory grows about in proportion, and the line through both says where the end is. Of one
    that can't be stopped early only failures are known. They say how much was needed at least, not how much would have
    been; so it goes down by that, or by a tenth.

    Args:
        start: the largest size allowed.
        minimum: the smallest size allowed.
        multiple_of: every size is a multiple of this.
    """

    start: int
    minimum: int = 1
    multiple_of: int = 1
    high: int = field(init=False)
    """The smallest size that ran out, or one above what is allowed."""
    _measured: dict[int, Bytes] = field(default_factory=dict, init=False)
    _needed: Bytes = field(default_factory=dict, init=False)
    _called: set[int] = field(default_factory=set, init=False)
    _misses: int = field(default=0, init=False)  # failures after something was measured

    def __post_init__(self) -> None:
        self.high = self.start + 1

    @property
    def lowest(self) -> int:
        """The smallest size that may be tried."""
        return -(-self.minimum // self.multiple_of) * self.multiple_of

    @property
    def first(self) -> int:
        """The largest size that may be tried: where to begin."""
        return self._floor(self.start)

    @property
    def is_over(self) -> bool:
        """Whether every size that is allowed is too large."""
        return self._floor(self.high - 1) < self.lowest

    def ran_out(self, size: int, needed: Bytes, *, stopped: bool) -> None:
        """A size was too large.

        Args:
            size: it.
            needed: what was needed at least, where that is known: what was allocated, and what was asked for on top.
            stopped: it was to be stopped early.
        """
        self._called.add(size)
        self._misses += bool(self._measured) and not stopped
        self.high = min(self.high, size)
        self._needed = needed

    def fitted(self, size: int, reserved: Bytes) -> None:
        """A size was stopped after two steps; this is what they reserved at most."""
        self._called.add(size)
        self._measured[size] = reserved

    def next(self, *, stoppable: bool, capacity: Bytes, base: Bytes) -> tuple[int, bool]:
        """The size to try, and whether to stop it early to measure it.

        Args:
            stoppable: the program trains, so that it can be measured.
            capacity: bytes that it can have; empty: not known.
            base: of these, reserved before it begins.
        """
        if self._misses > 1 or not (stoppable and capacity):
            return self._uncalled(self._below_failure(capacity, base)), False
        if not self._measured:
            size = self._allowed(self.high // _FIRST)
            return size, size < self._allowed(self.high - 1)
        low = max(self._measured)
        guess = self._guess(capacity, base)
        if guess >= self.high < self.first or self._misses:
            guess = (low + 3 * self.high) // 4  # the figures believe in what ran out
        # One size doesn't say what of it is there at any size.
        is_far = guess > (low + low // 16 if len(self._measured) == 1 else _FAR * low)
        nearer = self._allowed(max(guess - guess // 8, (low + guess) // 2))  # two close ones would make no line
        if is_far and nearer > low and not self._misses:
            return nearer, True
        guess = max(self._allowed(guess), self._allowed(low))
        return (guess if guess < _MANY else self._uncalled(guess)), False

    def _uncalled(self, size: int) -> int:
        """The nearest size below that was not called yet; the lowest one, if there is none."""
        size = self._allowed(size)
        while size in self._called and size > self.lowest:
            size = self._allowed(size - 1)
        return size

    def _guess(self, capacity: Bytes, base: Bytes) -> int:
        """Where the line through the two largest sizes meets what there is, on the device where that is first."""
        *_, (second, upper) = sorted(self._measured.items())
        first, lower = sorted(self._measured.items())[-2] if len(self._measured) > 1 else (0, base)
        ends = []
        for device, reserved in upper.items():
            slope = (reserved - lower.get(device, 0)) / (second - first)
            if slope > 0:
                room = capacity.get(device, 0) * (1 - _MARGIN) - reserved
                ends.append(second + int(room / slope))
        return min(ends, default=self.high)

    def _below_failure(self, capacity: Bytes, base: Bytes) -> int:
        bounds = [
            (self.high * (capacity[device] - base.get(device, 0))) // (needed - base.get(device, 0))
            for device, needed in self._needed.items()
            if device in capacity and needed > capacity[device] > base.get(device, 0)
        ]
        # Most programs fail at one of many small allocations, which says next to nothing.
        bound = min(bounds, default=self.high)
        return bound if bound <= self.high * 19 // 20 else self.high * 9 // 10

    def _floor(self, size: int) -> int:
        return size // self.multiple_of * self.multiple_of

    def _allowed(self, size: int) -> int:
        return max(self.lowest, self._floor(min(size, self.high - 1)))
