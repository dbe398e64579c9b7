"""Counters of the caching allocator under torch's names. Knows how each of them counts; decides nothing."""

from __future__ import annotations


class Usage:
    """The statistics of one pool, or of both together.

    torch keeps current, peak, allocated and freed for each statistic. Here ``freed`` is computed, as allocated minus
    current, and the attributes are plain integers: this is on the path of every event of a replay.
    """

    __slots__ = (
        "active",
        "active_bytes",
        "active_bytes_peak",
        "active_peak",
        "allocated_bytes",
        "allocated_bytes_peak",
        "allocation",
        "allocation_peak",
        "bytes_in",
        "count_in",
        "inactive_split",
        "inactive_split_bytes",
        "inactive_split_bytes_in",
        "inactive_split_bytes_peak",
        "inactive_split_in",
        "inactive_split_peak",
        "requested_bytes",
        "requested_bytes_in",
        "requested_bytes_peak",
        "reserved_bytes",
        "reserved_bytes_in",
        "reserved_bytes_peak",
        "segment",
        "segment_in",
        "segment_peak",
    )

    # Spelled out for the type checker, which does not see what __init__ sets in a loop.
    active: int
    active_bytes: int
    active_bytes_peak: int
    active_peak: int
    allocated_bytes: int
    allocated_bytes_peak: int
    allocation: int
    allocation_peak: int
    bytes_in: int
    count_in: int
    inactive_split: int
    inactive_split_bytes: int
    inactive_split_bytes_in: int
    inactive_split_bytes_peak: int
    inactive_split_in: int
    inactive_split_peak: int
    requested_bytes: int
    requested_bytes_in: int
    requested_bytes_peak: int
    reserved_bytes: int
    reserved_bytes_in: int
    reserved_bytes_peak: int
    segment: int
    segment_in: int
    segment_peak: int

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    def reserve(self, segments: int, size: int) -> None:
        """Segments or pages came from the driver."""
        self.segment += segments
        self.segment_in += segments
        self.segment_peak = max(self.segment_peak, self.segment)
        self.reserved_bytes += size
        self.reserved_bytes_in += size
        self.reserved_bytes_peak = max(self.reserved_bytes_peak, self.reserved_bytes)

    def release(self, segments: int, size: int) -> None:
        """Segments or pages went back to the driver."""
        self.segment -= segments
        self.reserved_bytes -= size

    def reset_peaks(self) -> None:
        """Let every peak begin anew at the current value."""
        for name in self.__slots__:
            if name.endswith("_peak"):
                setattr(self, name, getattr(self, name.removesuffix("_peak")))

    def rows(self) -> dict[str, tuple[int, int, int, int]]:
        """Of each statistic: current, peak, allocated, freed."""
        inflow = {
            "allocation": self.count_in,
            "segment": self.segment_in,
            "active": self.count_in,
            "inactive_split": self.inactive_split_in,
            "allocated_bytes": self.bytes_in,
            "reserved_bytes": self.reserved_bytes_in,
            "active_bytes": self.bytes_in,
            "inactive_split_bytes": self.inactive_split_bytes_in,
            "requested_bytes": self.requested_bytes_in,
        }
        rows = {}
        for name, came in inflow.items():
            current = getattr(self, name)
            rows[name] = (current, getattr(self, f"{name}_peak"), came, came - current)
        return rows


# What happens to blocks changes two rows, that of all pools and that of one. One function for both, with its steps
# spelled out, takes half the time of two calls.


def take(total: Usage, part: Usage, size: int, requested: int) -> None:
    """A block was handed out."""
    for usage in (total, part):
        usage.count_in += 1
        usage.bytes_in += size
        usage.requested_bytes_in += requested
        usage.allocation = count = usage.allocation + 1
        if count > usage.allocation_peak:
            usage.allocation_peak = count
        usage.active = count = usage.active + 1
        if count > usage.active_peak:
            usage.active_peak = count
        usage.allocated_bytes = current = usage.allocated_bytes + size
        if current > usage.allocated_bytes_peak:
            usage.allocated_bytes_peak = current
        usage.active_bytes = current = usage.active_bytes + size
        if current > usage.active_bytes_peak:
            usage.active_bytes_peak = current
        usage.requested_bytes = current = usage.requested_bytes + requested
        if current > usage.requested_bytes_peak:
            usage.requested_bytes_peak = current


def give_back(total: Usage, part: Usage, size: int) -> None:
    """The owner gave a block back."""
    total.allocation -= 1
    part.allocation -= 1
    total.allocated_bytes -= size
    part.allocated_bytes -= size


def complete(total: Usage, part: Usage, size: int, requested: int) -> None:
    """A block that was given back can be used again."""
    total.active -= 1
    part.active -= 1
    total.active_bytes -= size
    part.active_bytes -= size
    total.requested_bytes -= requested
    part.requested_bytes -= requested


def split(total: Usage, part: Usage, blocks: int, size: int) -> None:
    """Free blocks of split segments came or (negative) went."""
    for usage in (total, part):
        if blocks:
            usage.inactive_split = count = usage.inactive_split + blocks
            if blocks > 0:
                usage.inactive_split_in += blocks
                if count > usage.inactive_split_peak:
                    usage.inactive_split_peak = count
        usage.inactive_split_bytes = current = usage.inactive_split_bytes + size
        if size > 0:
            usage.inactive_split_bytes_in += size
            if current > usage.inactive_split_bytes_peak:
                usage.inactive_split_bytes_peak = current


def flatten(usages: dict[str, Usage]) -> dict[str, int]:
    """The statistics as ``torch.cuda.memory_stats()`` names them: ``"allocated_bytes.all.peak"``, ...

    Args:
        usages: by torch's name of what was counted: ``"all"``, ``"large_pool"``, ``"small_pool"``.
    """
    return {
        f"{name}.{pool}.{kind}": value
        for pool, usage in usages.items()
        for name, row in usage.rows().items()
        for kind, value in zip(("current", "peak", "allocated", "freed"), row, strict=True)
    }
