"""The caching allocator of one CUDA device, simulated: what becomes of each request. Knows no torch, and neither where
requests come from nor how the answers are shown.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import UsageError, shown
from ..sizes import format_size
from ..tape.action_codes import ALLOC, FREE, FREE_COMPLETED
from ..torch_releases import TieBreak
from . import stats
from .blocks import Block, ExpandableRange, LinkedBlock, merge
from .conf import MIN_BLOCK, SMALL_SIZE, UNLIMITED, AllocatorConf
from .device import AddressOrder, AddressSpace
from .reserve import Reserve
from .states import NO_POOL, BlockState, PoolId, SegmentState


class DeviceCachingAllocator(Reserve):
    """What torch calls by this name (c10/cuda/CUDACachingAllocator.cpp), whose every rule of torch 2.14 is here.

    Args:
        capacity: bytes of the device; None: without end.
        conf: the settings.
        address_order, addresses, tie_break: as of `vramkit.CachingAllocator`.
        context: bytes of the device that the CUDA context and other processes take.
        history: keep every event in `events`, not only those of segments.
    """

    def __init__(
        self,
        capacity: int | None = None,
        conf: AllocatorConf | None = None,
        *,
        address_order: AddressOrder = "falling",
        context: int = 0,
        addresses: AddressSpace | None = None,
        tie_break: TieBreak = "age",
        history: bool = False,
    ) -> None:
        super().__init__(
            capacity,
            AllocatorConf() if conf is None else conf,
            address_order=address_order,
            context=context,
            addresses=addresses,
            tie_break=tie_break,
        )
        self._falling = address_order == "falling"
        self.history = history
        self.active: dict[int, LinkedBlock] = {}
        """By address: the blocks that are handed out, or given back and still in use by another stream."""

    def __repr__(self) -> str:
        allocated, reserved = format_size(self.allocated_bytes), format_size(self.reserved_bytes)
        return f"{type(self).__name__}({allocated} allocated of {reserved} reserved)"

    @property
    def allocated_bytes(self) -> int:
        """What ``torch.cuda.memory_allocated()`` says."""
        return self.total.allocated_bytes

    @property
    def reserved_bytes(self) -> int:
        """What ``torch.cuda.memory_reserved()`` says."""
        return self.total.reserved_bytes

    @property
    def peak_allocated_bytes(self) -> int:
        """What ``torch.cuda.max_memory_allocated()`` says."""
        return self.total.allocated_bytes_peak

    @property
    def peak_reserved_bytes(self) -> int:
        """What ``torch.cuda.max_memory_reserved()`` says."""
        return self.total.reserved_bytes_peak

    def malloc(self, size: int, stream: int = 0, *, pool: PoolId = NO_POOL) -> LinkedBlock | None:
        """A block for a request, from the cache or from a new segment.

        Args:
            size: whole bytes; 0 gives None, as torch hands out a null pointer then.
            stream: the stream that asks. A free block of another stream is never given.
            pool: torch's id of a private pool.

        Raises:
            SimulatedOutOfMemory: neither the cache nor the device has room. Cached segments were given back.
            UsageError: the size is not a whole number of bytes.
        """
        if type(size) is not int:
            size = _whole(size)
        if size <= 0:
            if size < 0:
                raise UsageError(
                    "A block was asked for", f"with {shown(size)} bytes", instead="Ask for 0 bytes or more"
                )
            return None
        block = self.serve(size, self.conf.round_size(size), stream, pool).renewed()
        self.active[block.address] = block
        return block

    def serve(self, size: int, need: int, stream: int, pool: PoolId = NO_POOL) -> LinkedBlock:
        """`malloc` of a request whose rounding is known; a replay rounds all of its requests at once.

        The handle may be one that was given back before, as a replay uses none after that.
        """
        conf = self.conf
        home = self.pools[pool][need > SMALL_SIZE] if pool in self.pools else self.pool(need, pool)
        block = self.cached(home, need, stream) or self.fresh(home, need, stream, size)

        usage = self.usage[home.small]
        was_split = block.prev is not None or block.next is not None
        rest = block.size - need
        # As `AllocatorConf.smallest_rest`, which a call would make the dearest line here.
        if (
            rest >= MIN_BLOCK
            if home.small or conf.expandable_segments
            else rest > SMALL_SIZE and need < conf.max_split_size
        ):
            # The caller gets the front as a new block; the old one shrinks and stays free.
            front = LinkedBlock(block.address, need, stream, home, block.shift)
            front.range = block.range
            front.put_before(block)
            block.address += need
            block.size = rest
            home.insert(block)
            if block.range is None:
                if was_split:
                    stats.split(self.total, usage, 0, -need)
                else:
                    stats.split(self.total, usage, 1, rest)
            block = front
        elif was_split and block.range is None:
            stats.split(self.total, usage, -1, -block.size)
        block.allocated = True
        block.requested = size
        self.active[block.address] = block
        stats.take(self.total, usage, block.size, size)
        if conf.max_split_size != UNLIMITED:
            self.count_oversize("oversize_allocations", block.size, 1)
        if self.history:
            self.events.append((ALLOC, block.address, size, stream))
        return block

    def record_stream(self, block: Block | None, stream: int) -> None:
        """Note that a kernel on another stream uses the block, as ``Tensor.record_stream`` does."""
        if block is None:
            return
        if not isinstance(block, LinkedBlock):
            raise _no_block("A stream uses a block", block)
        if not block.allocated:
            raise UsageError("A stream uses a block", f"{block!r} is not in use", instead="Note it before the free")
        if stream != block.stream:
            block.uses = (block.uses or set()) | {stream}

    def free(self, block: Block | None) -> None:
        """Give a block back; one that other streams use (`record_stream`) stays active until `complete`."""
        if block is None:
            return
        if not isinstance(block, LinkedBlock):
            raise _no_block("A block was freed", block)
        if block.uses:
            self.give_back(block)
        else:
            self._give_back(block)
            self._complete(block)

    def give_back(self, block: Block) -> None:
        """The first half of `free`: ``allocated`` shrinks, and the block can't be used again before `complete`."""
        if not isinstance(block, LinkedBlock):
            raise _no_block("A block was freed", block)
        self._give_back(block)
        block.pending = True
        self.pending[block.address] = block

    def complete(self, block: Block) -> None:
        """The second half of `free`: the block merges with its free neighbours and can be used again."""
        if not isinstance(block, LinkedBlock):
            raise _no_block("A block's last use was completed", block)
        if not block.pending:
            raise UsageError("A block's last use was completed", f"{block!r} was not freed", instead="Free it first")
        del self.pending[block.address]
        block.pending = False
        block.uses = None
        self._complete(block)

    def empty_cache(self, pool: PoolId = NO_POOL) -> None:
        """Give all segments that are wholly free, and all free pages, back to the device.

        Args:
            pool: give back only what is free in this private pool, and only after `release_pool`.
        """
        if pool == NO_POOL:
            self.release_all()
        elif pool in self.released:
            self.release_private(pool)

    def release_pool(self, pool: PoolId) -> None:
        """No graph and no ``MemPool`` uses a private pool any more: `empty_cache` may give its segments back.

        The end of a ``MemPool`` does that at once: it is this, and then ``empty_cache(pool)``.
        """
        if pool != NO_POOL:
            self.pool(0, pool)  # torch knows a pool before its first request
            self.released[pool] = None

    def configure(self, conf: str | AllocatorConf) -> None:
        """Change the settings while the allocator runs, as ``torch.cuda.memory._set_allocator_settings`` does.

        Args:
            conf: a text, whose effect on the settings that it doesn't name is that of `AllocatorConf.changed`; or all
                settings at once. The limit on all segments stays what it is: `set_memory_fraction` changes it.
        """
        self.conf = conf if isinstance(conf, AllocatorConf) else self.conf.changed(conf)

    def _give_back(self, block: LinkedBlock) -> None:
        if not block.allocated:
            raise UsageError("A block was freed", f"{block!r} is not in use", instead="Free each block once")
        block.allocated = False
        stats.give_back(self.total, self.usage[block.pool.small], block.size)
        if self.conf.max_split_size != UNLIMITED:
            self.count_oversize("oversize_allocations", block.size, -1)
        if self.history:
            self.events.append((FREE, block.address, block.requested, block.stream))

    def _complete(self, block: LinkedBlock) -> None:
        """torch: ``free_block``."""
        if self.history:
            self.events.append((FREE_COMPLETED, block.address, block.requested, block.stream))
        del self.active[block.address]
        home = block.pool
        usage = self.usage[home.small]
        stats.complete(self.total, usage, block.size, block.requested)
        blocks = change = 0
        if (neighbour := block.prev) is not None and (size := merge(block, neighbour)):
            blocks -= 1
            change -= size
        if (neighbour := block.next) is not None and (size := merge(block, neighbour)):
            blocks -= 1
            change -= size
        home.insert(block)
        if block.range is None:
            if block.prev is not None or block.next is not None:
                blocks += 1
                change += block.size
            if blocks or change:
                stats.split(self.total, usage, blocks, change)

    def reset_peak_memory_stats(self) -> None:
        """Let every peak begin anew at the current value."""
        for both, parts in ((self.total, self.usage), *self.private_usage.values()):
            for usage in (both, *parts):
                usage.reset_peaks()
        for row in self.oversize.values():
            row[1] = row[0]

    def segments(self) -> tuple[SegmentState, ...]:
        """The segments with their blocks, in order of address; an expandable one is an entry per mapped range."""
        heads = [block for pools in self.pools.values() for pool in pools for block in pool.blocks.values()]
        heads += self.active.values()
        # Where the block to the left has no memory behind it, a mapped range begins.
        heads = [block for block in heads if block.prev is None or not block.prev.mapped]
        return tuple(_segment(head) for head in sorted(heads, key=lambda block: block.address))

    def restore(self, segments: Sequence[SegmentState]) -> None:
        """Take over segments and blocks that were there before, such as those of a recording.

        Raises:
            UsageError: the allocator has served a request already.
        """
        if self.reserved:
            raise UsageError(
                "Segments were to be taken over",
                f"the allocator has {format_size(self.reserved)} of its own",
                instead="Use a new CachingAllocator",
            )
        spans: dict[tuple[int, bool, PoolId], list[SegmentState]] = {}
        # Nobody recorded the segments' ages. Assumed: those of the order in which addresses are given out.
        for segment in sorted(segments, key=lambda each: each.address, reverse=self._falling):
            if segment.expandable:
                spans.setdefault((segment.stream, segment.small, segment.pool), []).append(segment)
            else:
                self._link([segment], None)
        for mapped in spans.values():
            mapped.sort(key=lambda each: each.address)
            # A snapshot does not say which addresses are set aside. Assumed: one range for each stream and pool, as
            # torch makes it, from the first mapped page on. Wrong where pages before that one were unmapped.
            page = self.page(small=mapped[0].small)
            self._link(mapped, ExpandableRange(mapped[0].address, self.range_size(page), page))
        self.events.clear()
        self.pool_of_event.clear()
        self.counters["num_device_alloc"] = 0
        self.reset_peak_memory_stats()

    def _link(self, segments: Sequence[SegmentState], span: ExpandableRange | None) -> None:
        """Make the blocks of one segment, or of all mapped ranges of an expandable one, and what lies between."""
        first = segments[0]
        home = self.pool(1 if first.small else self.conf.large_segment_size, first.pool)
        end = first.address + first.size if span is None else span.address + span.size
        shift = self.shift(first.address)
        chain: list[LinkedBlock] = []

        def add(address: int, size: int) -> LinkedBlock:
            block = LinkedBlock(address, size, first.stream, home, shift)
            block.range = span
            if chain:
                block.put_after(chain[-1])
            chain.append(block)
            return block

        at = first.address
        for segment in segments:
            if at < segment.address:
                add(at, segment.address - at).mapped = False
            for state in segment.blocks:
                block = add(state.address, state.size)
                block.requested = state.requested
                block.allocated = state.state == "active_allocated"
                block.pending = state.state == "active_pending_free"
            at = segment.address + segment.size
            self.device.take(segment.size)
            self._reserve(segment.address, segment.size, home, segment.stream, segments=int(span is None))
        if at < end:
            add(at, end - at).mapped = False
        for block in chain:
            self._take_over(block)

    def _take_over(self, block: LinkedBlock) -> None:
        usage = self.usage[block.pool.small]
        if not block.mapped:
            block.pool.insert_unmapped(block)
        elif block.allocated or block.pending:
            self.active[block.address] = block
            stats.take(self.total, usage, block.size, block.requested)
            if block.pending:
                stats.give_back(self.total, usage, block.size)
                self.pending[block.address] = block
        else:
            block.pool.insert(block)
            if block.is_split and block.range is None:
                stats.split(self.total, usage, 1, block.size)


def _whole(size: Any) -> int:
    """Numbers of numpy, of which a sum would be no int, as one."""
    try:
        return operator.index(size)
    except TypeError:
        raise UsageError(
            "A block was asked for", f"with the size {shown(size)}", instead="Ask for a whole number of bytes"
        ) from None


def _no_block(asked: str, given: object) -> UsageError:
    """What to tell of something else in a block's place."""
    return UsageError(asked, f"got {given!r}", instead="Give what malloc returned")


def _chain(head: LinkedBlock) -> Iterator[LinkedBlock]:
    block: LinkedBlock | None = head
    while block is not None and block.mapped:
        yield block
        block = block.next


def _segment(head: LinkedBlock) -> SegmentState:
    blocks = [BlockState(block.address, block.size, block.requested, block.state) for block in _chain(head)]
    size = sum(block.size for block in blocks)
    home = head.pool
    return SegmentState(
        head.address, size, tuple(blocks), head.stream, home.small, head.range is not None, home.identity
    )
