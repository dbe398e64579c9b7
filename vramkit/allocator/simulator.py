"""``CachingAllocator``: what a program sees of the simulated allocator, under torch's names. Serves nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import UsageError
from ..sizes import format_size, parse_size
from ..tape.action_codes import OOM
from ..tape.events import TORCH_ACTIONS, Tape
from ..torch_releases import TieBreak, installed_tie_break
from .blocks import Block
from .conf import UNLIMITED, AllocatorConf
from .core import DeviceCachingAllocator
from .device import AddressOrder, AddressSpace
from .replay import Replay, replay
from .states import NO_POOL, PoolId, SegmentState
from .stats import Usage, flatten

_TRACE_NAMES = {int(action): name for name, action in TORCH_ACTIONS.items()}


class CachingAllocator:
    """The native caching allocator of torch's CUDA backend, without CUDA and without torch.

    ::

        allocator = CachingAllocator(24 << 30, "max_split_size_mb:128")
        block = allocator.malloc(3 << 20)
        allocator.free(block)
        allocator.memory_stats()["reserved_bytes.all.peak"]

    Every rule is that of ``DeviceCachingAllocator`` in torch 2.8 to 2.14 (c10/cuda/CUDACachingAllocator.cpp): the same
    requests in the same order give the same segments, blocks and statistics.

    Args:
        capacity: bytes of the device, also as a text such as ``"24 GiB"``; None: without end, up to the 126 TiB that
            a process has addresses for.
        conf: settings as in ``PYTORCH_CUDA_ALLOC_CONF``, or read already.
        address_order: where new segments lie; see `vramkit.allocator.device.Addresses`.
        context: bytes of the device, or a text, that the CUDA context and other processes take. They count against the
            capacity, not against ``per_process_memory_fraction``.
        addresses: gives the segments' addresses in place of ``address_order``: a recording's own.
        tie_break: which of equally large free blocks is taken. "age": of the oldest segment, as torch since 2.12 does,
            so that addresses decide nothing. "address": the lowest, as torch 2.11 and older do. None: as the torch that
            is installed; in a `replay` that comes first, as the tape's.
        history: `snapshot` has every event, not only those of segments.

    Raises:
        UsageError: a size is none, the settings can't be simulated, or a fraction is given of a device without a
            capacity.

    Known limitations: a block that several streams use comes back when `complete` says so, as nobody knows when
    their kernels end. A CUDA graph's capture, which defers that to its end, and what can be set of a ``MemPool``
    (``use_on_oom``, ``no_split``, an allocator of its own) are not simulated.
    """

    def __init__(
        self,
        capacity: int | str | None = None,
        conf: str | AllocatorConf = "",
        *,
        address_order: AddressOrder = "falling",
        context: int | str = 0,
        addresses: AddressSpace | None = None,
        tie_break: TieBreak | None = None,
        history: bool = False,
    ) -> None:
        conf = conf if isinstance(conf, AllocatorConf) else AllocatorConf.parse(conf)
        self._max_split_size_at_start = conf.max_split_size
        self._breaks_ties_as_tape = tie_break is None
        self._device = DeviceCachingAllocator(
            None if capacity is None else parse_size(capacity),
            conf,
            address_order=address_order,
            context=parse_size(context),
            addresses=addresses,
            tie_break=installed_tie_break() if tie_break is None else tie_break,
            history=history,
        )

    def __repr__(self) -> str:
        allocated, reserved = format_size(self.allocated_bytes), format_size(self.reserved_bytes)
        return f"CachingAllocator({allocated} allocated of {reserved} reserved)"

    # -- blocks ----------------------------------------------------------------------------------------------------

    def malloc(self, size: int, stream: int = 0, *, pool: PoolId = NO_POOL) -> Block | None:
        """A block for a request, from the cache or from a new segment.

        Args:
            size: whole bytes; 0 gives None, as torch hands out a null pointer then.
            stream: the stream that asks. A free block of another stream is never given.
            pool: torch's id of a private pool.

        Raises:
            SimulatedOutOfMemory: neither the cache nor the device has room. Cached segments were given back.
            UsageError: the size is not a whole number of bytes.
        """
        return self._device.malloc(size, stream, pool=pool)

    def free(self, block: Block | None) -> None:
        """Give a block back; one that other streams use (`record_stream`) stays active until `complete`."""
        self._device.free(block)

    def record_stream(self, block: Block | None, stream: int) -> None:
        """Note that a kernel on another stream uses the block, as ``Tensor.record_stream`` does."""
        self._device.record_stream(block, stream)

    def complete(self, block: Block) -> None:
        """The other streams have finished with a block that was freed: it can be used again."""
        self._device.complete(block)

    def synchronize(self) -> None:
        """All streams have finished: every block that was freed can be used again."""
        self._device.synchronize()

    def replay(self, tape: Tape, *, flushes: bool = True) -> Replay:
        """Serve all requests of a tape; see `vramkit.allocator.replay.replay`.

        Raises:
            UsageError: it is no tape.
        """
        if not isinstance(tape, Tape):
            raise UsageError("A tape was to be replayed", f"got {tape!r}", instead="Give a Tape, such as profile.tape")
        if self._breaks_ties_as_tape and not self._device.age:  # it has made no segment yet
            self._device.tie_break = tape.tie_break
        return replay(self._device, tape, flushes=flushes)

    # -- the cache and the settings --------------------------------------------------------------------------------

    def empty_cache(self, pool: PoolId = NO_POOL) -> None:
        """Give all segments that are wholly free, and all free pages, back to the device.

        Args:
            pool: give back only what is free in this private pool, and only after `release_pool`.
        """
        self._device.empty_cache(pool)

    def release_pool(self, pool: PoolId) -> None:
        """No graph and no ``MemPool`` uses a private pool any more: `empty_cache` may give its segments back.

        The end of a ``MemPool`` does that at once: it is this, and then ``empty_cache(pool)``.
        """
        self._device.release_pool(pool)

    def configure(self, conf: str | AllocatorConf) -> None:
        """Change the settings while the allocator runs, as ``torch.cuda.memory._set_allocator_settings`` does.

        Args:
            conf: a text, whose effect on the settings that it doesn't name is that of `AllocatorConf.changed`; or all
                settings at once. The limit on all segments stays what it is: `set_memory_fraction` changes it.
        """
        self._device.configure(conf)

    def set_memory_fraction(self, fraction: float) -> None:
        """Limit all segments together to a part of the device, as ``torch.cuda.set_per_process_memory_fraction``.

        Raises:
            UsageError: the fraction is not within 0 and 1, or the device has no capacity.
        """
        self._device.set_memory_fraction(fraction)

    def restore(self, segments: Sequence[SegmentState]) -> None:
        """Take over segments and blocks that were there before, such as those of a recording.

        Raises:
            UsageError: the allocator has served a request already.
        """
        self._device.restore(segments)

    # -- what it looks like from outside ---------------------------------------------------------------------------

    @property
    def allocated_bytes(self) -> int:
        """What ``torch.cuda.memory_allocated()`` says."""
        return self._device.allocated_bytes

    @property
    def reserved_bytes(self) -> int:
        """What ``torch.cuda.memory_reserved()`` says."""
        return self._device.reserved_bytes

    @property
    def peak_allocated_bytes(self) -> int:
        """What ``torch.cuda.max_memory_allocated()`` says."""
        return self._device.peak_allocated_bytes

    @property
    def peak_reserved_bytes(self) -> int:
        """What ``torch.cuda.max_memory_reserved()`` says."""
        return self._device.peak_reserved_bytes

    def memory_stats(self) -> dict[str, int]:
        """The statistics under the names of ``torch.cuda.memory_stats()``, sizes in bytes."""
        device = self._device
        stats = _flatten(device.total, device.usage)
        for (major, minor), usages in device.private_usage.items():
            name = f"reserved_bytes_by_private_pools.{major}_{minor}."
            own = _flatten(*usages).items()
            stats |= {key.replace("reserved_bytes.", name): value for key, value in own if key.startswith("reserved_")}
        for name, (current, peak, came) in device.oversize.items():
            row = {"current": current, "peak": peak, "allocated": came, "freed": came - current}
            stats.update({f"{name}.{kind}": value for kind, value in row.items()})
        limit = self._max_split_size_at_start  # torch never updates it
        return stats | device.counters | {"max_split_size": -1 if limit == UNLIMITED else limit}

    def reset_peak_memory_stats(self) -> None:
        """Let every peak begin anew at the current value."""
        self._device.reset_peak_memory_stats()

    def segments(self) -> tuple[SegmentState, ...]:
        """The segments with their blocks, in order of address; an expandable one is an entry per mapped range."""
        return self._device.segments()

    def snapshot(self) -> dict[str, Any]:
        """Segments, blocks and events as ``torch.cuda.memory._snapshot()`` gives them."""
        return {
            "segments": [_torch_segment(each) for each in self.segments()],
            "device_traces": [[_torch_entry(*each) for each in self._device.events]],
        }


def _flatten(both: Usage, parts: tuple[Usage, Usage]) -> dict[str, int]:
    large, small = parts
    return flatten({"all": both, "large_pool": large, "small_pool": small})


def _torch_entry(action: int, address: int, size: int, stream: int) -> dict[str, Any]:
    # Of a failure there is no address; it is the device's free memory that is kept in its place.
    place = "device_free" if action == OOM else "addr"
    return {"action": _TRACE_NAMES[action], place: address, "size": size, "stream": stream}


def _torch_segment(segment: SegmentState) -> dict[str, Any]:
    allocated = [block for block in segment.blocks if block.state == "active_allocated"]
    active = [block for block in segment.blocks if block.state != "inactive"]
    return {
        "device": 0,
        "address": segment.address,
        "total_size": segment.size,
        "allocated_size": sum(block.size for block in allocated),
        "active_size": sum(block.size for block in active),
        "requested_size": sum(block.requested for block in active),
        "stream": segment.stream,
        "segment_type": "small" if segment.small else "large",
        "segment_pool_id": segment.pool,
        "is_expandable": segment.expandable,
        "frames": [],
        "blocks": [
            {
                "address": block.address,
                "size": block.size,
                "requested_size": block.requested,
                "state": block.state,
                "frames": [],
            }
            for block in segment.blocks
        ],
    }
