"""What torch's allocator says of each device that was used, and what a failure asked for. Knows devices; knows nothing
of batch sizes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..allocator import memory_limit
from ..sizes import parse_size

_REQUEST = re.compile(r"Tried to allocate (\d+(?:\.\d+)? [KMG]iB)\. GPU (\d+)")


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """What torch says of a device's memory, in bytes."""

    device: int
    reserved: int
    peak_allocated: int
    peak_reserved: int
    retries: int

    @property
    def capacity(self) -> int:
        """What this process can have: it asks the driver, so only of a device that is in use anyway."""
        return available(self.device, self.reserved)


def available(device: int, reserved: int) -> int:
    """Bytes that this process can have on a device, of which its allocator holds some: it asks the driver."""
    free, total = torch.cuda.mem_get_info(device)
    limit = allowed(device)
    return min(free + reserved, total if limit is None else limit)


def allowed(device: int) -> int | None:
    """Bytes that the allocator allows itself on a device; None: no memory fraction was set."""
    total = torch.cuda.get_device_properties(device).total_memory
    return memory_limit(torch.cuda.get_per_process_memory_fraction(device), total)


def read_gauges(*, fresh: bool = False) -> list[Gauge]:
    """Every device that was used; none where CUDA was not.

    Args:
        fresh: torch's peaks begin anew.
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # torch's
        return []
    found = []
    for device in range(torch.cuda.device_count()):
        stats = torch.cuda.memory_stats(device)
        if device != torch.cuda.current_device() and not stats["reserved_bytes.all.allocated"]:
            continue  # asking the driver about it would begin to use it
        if fresh:
            torch.cuda.reset_peak_memory_stats(device)
        found.append(
            Gauge(
                device=device,
                reserved=stats["reserved_bytes.all.current"],
                peak_allocated=stats["allocated_bytes.all.peak"],
                peak_reserved=stats["reserved_bytes.all.peak"],
                retries=stats["num_alloc_retries"],
            )
        )
    return found


def needed(gauges: Sequence[Gauge], error: BaseException) -> dict[int, int]:
    """Bytes that would have been allocated on the device that was too small; empty where the error does not say."""
    asked = _REQUEST.search(str(error))
    if asked is None:
        return {}
    size, device = parse_size(asked[1]), int(asked[2])
    return {gauge.device: gauge.peak_allocated + size for gauge in gauges if gauge.device == device}
