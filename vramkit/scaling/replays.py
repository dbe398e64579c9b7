"""What a batch size would take, by the simulator: tapes replayed as torch's allocator would serve them. Knows tapes at
any size and the allocator's settings; runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..allocator import AddressOrder, AllocatorConf, DeviceCachingAllocator
from ..allocator.conf import UNLIMITED
from ..allocator.replay import replay
from ..errors import UsageError
from ..tape.events import Tape
from .requests import Families, Family, Requests


@dataclass(frozen=True, slots=True)
class Peaks:
    """What a batch size takes at most."""

    allocated: int
    """Highest ``memory_allocated()``, bytes."""
    reserved: int
    """Highest ``memory_reserved()``, bytes."""
    fits: bool = True
    """Every allocation was served."""
    in_order: bool = True
    """And none had to be tried again after the cache was given back."""


@dataclass
class Forecast:
    """Peaks at batch sizes that nobody ran.

    Most settings of the allocator make what is reserved independent of the device's memory, as long as that is enough:
    then one replay answers for every limit. The others (``garbage_collection_threshold``, ``max_split_size_mb``) are
    replayed on a device of the real one's size.
    """

    families: Families = field(default_factory=Families)
    capacity: int = 0
    """Bytes that the process can have."""
    limit: int | None = None
    """Bytes that the allocator allows itself, where a memory fraction was set."""
    _known: dict[int, Peaks] = field(default_factory=dict)

    def add(self, requests: Requests) -> Family:
        """Take in what a run asked for; see `Families.add`."""
        self._known.clear()
        return self.families.add(requests)

    def peaks(self, batch_size: int) -> Peaks | None:
        """The peaks at a batch size; None: too little is known."""
        if batch_size not in self._known:
            family = self.families.nearest(batch_size)
            if family is None:
                return None
            self._known[batch_size] = self._replayed(family.at(batch_size))
        return self._known[batch_size]

    def _replayed(self, tape: Tape) -> Peaks:
        # Only where ties are broken by address does it matter where a driver puts segments, and that nobody knows.
        orders: tuple[AddressOrder, ...] = ("falling",) if tape.tie_break == "age" else ("falling", "rising")
        return max((self._served(tape, order) for order in orders), key=lambda each: (not each.fits, each.reserved))

    def _served(self, tape: Tape, address_order: AddressOrder) -> Peaks:
        # The limit comes from the machine: torch can be given another fraction than its settings say.
        conf = replace(conf_of(tape), per_process_memory_fraction=1.0, throw_on_cudamalloc_oom=False)
        allocator = DeviceCachingAllocator(
            self.capacity if conf.looks_at_capacity else None,
            conf,
            address_order=address_order,
            tie_break=tape.tie_break,
        )
        if conf.looks_at_capacity:
            allocator.limit = self.limit
        return replayed(tape, allocator)


def allocator_of(
    tape: Tape, capacity: int | None = None, *, context: int = 0, address_order: AddressOrder = "falling"
) -> DeviceCachingAllocator:
    """An empty allocator that would serve a tape as the one did that made it.

    Args:
        tape: says the settings, and how ties are broken.
        capacity, context, address_order: as of `vramkit.CachingAllocator`.
    """
    return DeviceCachingAllocator(
        capacity, conf_of(tape), context=context, address_order=address_order, tie_break=tape.tie_break
    )


def replayed(tape: Tape, allocator: DeviceCachingAllocator) -> Peaks:
    """What an allocator that has served nothing yet takes for a tape's requests."""
    found = replay(allocator, tape)
    if not found.fits and allocator.device.capacity is None:  # more than a process has addresses
        return Peaks(allocated=UNLIMITED, reserved=UNLIMITED, fits=False, in_order=False)
    return Peaks(
        allocated=found.peak_allocated,
        reserved=found.peak_reserved,
        fits=found.fits,
        in_order=found.fits and not allocator.counters["num_alloc_retries"],
    )


def conf_of(tape: Tape) -> AllocatorConf:
    """The allocator's settings during a recording; the defaults where they can't be read."""
    try:
        return AllocatorConf.parse(tape.alloc_conf)
    except UsageError:  # a newer torch's; the runs will tell
        return AllocatorConf()


def largest(reserved: Callable[[int], int | None], limit: int, low: int, high: int) -> int:
    """The largest number up to which a growing function stays within a limit, in few calls.

    Args:
        reserved: bytes that a number of units takes; None: more than there are. It is assumed to grow; where it does
            not, the answer is one of several borders.
        limit: bytes.
        low: is within; or 0, which takes nothing.
        high: is not within, or not allowed.

    Returns:
        At least ``low``, below ``high``.
    """
    points: list[tuple[int, int]] = []
    step = max(1, low)
    falling_short = 0
    while high - low > 1:
        if len(points) >= 2 and falling_short < 3:
            (x1, y1), (x2, y2) = sorted(points, key=lambda point: abs(point[1] - limit))[:2]
            guess = x1 + int((limit - y1) * (x2 - x1) / (y2 - y1)) if y1 != y2 else (low + high) // 2
        elif high - low > 4 * step:
            guess = low + step
            step *= 8
        else:
            guess = (low + high) // 2
        guess = min(max(guess, low + 1), high - 1)
        width = high - low
        value = reserved(guess)
        if value is not None:
            points.append((guess, value))
        if value is not None and value <= limit:
            low = guess
        else:
            high = guess
        # A line that creeps up on the border from one side: halve now and then.
        falling_short = 0 if high - low <= width // 2 or falling_short >= 3 else falling_short + 1
    return low
