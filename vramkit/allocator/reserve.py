"""Between the cache and the device: how segments and pages come and go. Knows nothing of who asks for blocks.

Every rule is that of torch 2.14's ``DeviceCachingAllocator`` (c10/cuda/CUDACachingAllocator.cpp); the functions are
named there where they have another name here.
"""

from __future__ import annotations

from bisect import bisect_left
from numbers import Real
from typing import Literal

from ..errors import UsageError, VramkitError, shown
from ..sizes import format_size
from ..tape.action_codes import OOM, SEGMENT_ALLOC, SEGMENT_FREE, SEGMENT_MAP, SEGMENT_UNMAP
from ..torch_releases import TieBreak
from .blocks import AGE_SHIFT, SIZE_SHIFT, Block, ExpandableRange, LinkedBlock, Pool, merge
from .conf import SMALL_SEGMENT, SMALL_SIZE, UNLIMITED, AllocatorConf, memory_limit
from .device import Addresses, AddressOrder, AddressSpace, DriverMemory
from .states import NO_POOL, PoolId
from .stats import Usage

"""Which of equally large free blocks is taken: of the oldest segment, or of the lowest address."""

Event = tuple[int, int, int, int]
"""Action, address, bytes, stream; sizes as torch traces them."""


class SimulatedOutOfMemory(VramkitError):  # noqa: N818 - as torch names its own
    """The simulated allocator could not serve a request, also not after all it had cached was given back.

    Args:
        requested: bytes that were asked for.
        needed: bytes of the segment that could not be had: torch's "Tried to allocate".
        allocated_bytes: in blocks that are handed out.
        reserved_bytes: in segments.
        limit: bytes that all segments together may have; None: no limit was set.
        free: bytes of the device that are free; None: it is without end.
    """

    def __init__(
        self,
        requested: int,
        needed: int,
        *,
        allocated_bytes: int,
        reserved_bytes: int,
        limit: int | None = None,
        free: int | None = None,
    ) -> None:
        allowed = "" if limit is None else f" of {format_size(limit)} allowed"
        rest = "no address is left for them" if free is None else f"{format_size(free)} of the device is free"
        super().__init__(
            f"A block of {format_size(requested)} was asked for, which takes {format_size(needed)} of the device",
            f"{format_size(allocated_bytes)} are allocated, {format_size(reserved_bytes)} are "
            f"reserved{allowed}, and {rest}",
            "No cached segment is left that could be given back, or the settings forbid to try",
            "Use a smaller batch, a larger capacity, or expandable_segments:True against fragmentation",
        )
        self.requested = requested
        self.needed = needed
        self.allocated_bytes = allocated_bytes
        self.reserved_bytes = reserved_bytes


class Reserve:
    """The segments that the allocator holds, and their free blocks.

    Args: as of `vramkit.allocator.core.DeviceCachingAllocator`, which is built on this.
    """

    def __init__(
        self,
        capacity: int | None,
        conf: AllocatorConf,
        *,
        address_order: AddressOrder,
        context: int,
        addresses: AddressSpace | None,
        tie_break: TieBreak,
    ) -> None:
        if tie_break not in ("age", "address"):
            raise UsageError("A tie-break was expected", f"got {tie_break!r}", instead="Write 'age' or 'address'")
        self.tie_break = tie_break
        self.age = 0  # of the newest segment: how many were made before it
        self.conf = conf
        self.device = DriverMemory(capacity, context)
        self.addresses: AddressSpace = Addresses(address_order) if addresses is None else addresses
        self.limit: int | None = None
        self.set_memory_fraction(conf.per_process_memory_fraction)
        self.reserved = 0
        self.events: list[Event] = []
        self.pool_of_event: dict[int, PoolId] = {}
        """By index into `events`: the private pool of a segment or of pages. Of what isn't here, none."""
        self.pools: dict[PoolId, tuple[Pool, Pool]] = {NO_POOL: _pools(NO_POOL)}  # small, large
        self.released: dict[PoolId, None] = {}  # private pools without a user, in the order in which they lost it
        self.pending: dict[int, LinkedBlock] = {}  # address -> block that was given back but is in use, in that order
        self.total = Usage()
        self.usage = (Usage(), Usage())  # of the large pools, of the small ones: indexed by Pool.small
        self.private_usage: dict[PoolId, tuple[Usage, tuple[Usage, Usage]]] = {}
        """Of each private pool, both together and as `usage`; only what is reserved."""
        self.counters = dict.fromkeys(
            (
                "num_alloc_retries",
                "num_ooms",
                "num_oom_rejections",
                "num_sync_all_streams",
                "num_device_alloc",
                "num_device_free",
            ),
            0,
        )
        self.oversize = {"oversize_allocations": [0, 0, 0], "oversize_segments": [0, 0, 0]}  # current, peak, came

    def set_memory_fraction(self, fraction: float) -> None:
        """Limit all segments together to a part of the device, as ``torch.cuda.set_per_process_memory_fraction``.

        Raises:
            UsageError: the fraction is not within 0 and 1, or the device has no capacity.
        """
        if not isinstance(fraction, Real) or not 0 <= fraction <= 1:
            raise UsageError(
                "The memory fraction was set", f"it is {shown(fraction)}", instead="Give a number from 0 to 1"
            )
        if fraction < 1 and self.device.capacity is None:
            raise UsageError(
                f"{fraction} of the device's memory was set as the limit",
                "The device has no capacity",
                instead="Give CachingAllocator a capacity",
            )
        self.limit = memory_limit(fraction, self.device.capacity or 0)

    def pool(self, rounded: int, identity: PoolId) -> Pool:
        """The pool for a rounded request."""
        both = self.pools.get(identity)
        if both is None:
            both = self.pools[identity] = _pools(identity)
        return both[rounded > SMALL_SIZE]

    def cached(self, pool: Pool, need: int, stream: int) -> LinkedBlock | None:
        """Take the best fitting free block out of the pool, if one may be used (torch: ``get_free_block``)."""
        conf = self.conf
        if conf.garbage_collection_threshold and self.limit is not None:
            pool.searches += 1
        keys = pool.sorted.get(stream)
        if not keys:
            return None
        place = bisect_left(keys, need << SIZE_SHIFT)
        if place == len(keys):
            return None
        block = pool.blocks[keys[place]]
        if block.range is not None:
            if conf.expandable_segments:
                # What follows a block unmapped counts as its size: prefer the one that has the smallest room to grow.
                size = _expandable_size(block)
                while block.range is not None and place + 1 < len(keys):
                    following = pool.blocks[keys[place + 1]]
                    following_size = _expandable_size(following)
                    if following_size >= size:
                        break
                    place, block, size = place + 1, following, following_size
            else:
                # Expandable segments were switched off after some were made: their blocks are passed over.
                while block.range is not None:
                    place += 1
                    if place == len(keys):
                        return None
                    block = pool.blocks[keys[place]]
        if need < conf.max_split_size:
            if block.size >= conf.max_split_size:
                return None
        elif block.size >= need + conf.max_non_split_rounding:
            return None
        del pool.blocks[keys[place]]
        del keys[place]
        return block

    def fresh(self, pool: Pool, need: int, stream: int, requested: int) -> LinkedBlock:
        """A free block from new memory, after giving back cached memory if it must be.

        Raises:
            SimulatedOutOfMemory: there is none.
        """
        size = self.conf.segment_size(need)
        if self.limit is not None and self.conf.garbage_collection_threshold:
            self._collect_garbage()
        block = self._new(pool, need, size, stream, requested)
        if block is None and self._release_oversize(pool, need, stream):
            block = self._new(pool, need, size, stream, requested)
        # Up to 2.11 torch takes the use of a private pool for a graph's capture, in which it gives nothing else back.
        if block is None and (pool.identity == NO_POOL or self.tie_break == "age"):
            self.release_all()
            self.counters["num_alloc_retries"] += 1
            block = self._new(pool, need, size, stream, requested)
        if block is None:
            self.counters["num_ooms"] += 1
            self.events.append((OOM, self.device.free or 0, need, stream))
            raise self._out_of_memory(requested, size)
        return block

    def complete(self, block: Block) -> None:
        """A block's last use ended; see `vramkit.CachingAllocator.complete`."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """All streams have finished: every block that was given back can be used again."""
        for block in list(self.pending.values()):
            self.complete(block)

    def release_all(self) -> None:
        """Give back all that is wholly free (torch: ``release_cached_blocks``)."""
        self.counters["num_sync_all_streams"] += 1
        self.synchronize()
        small, large = self.pools[NO_POOL]
        self._release_blocks(large)
        self._release_blocks(small)
        for identity in self.released:
            for pool in self.pools[identity]:
                self._release_blocks(pool)

    def release_private(self, identity: PoolId) -> None:
        """Give back all that is wholly free in one private pool."""
        self.counters["num_sync_all_streams"] += 1
        for block in list(self.pending.values()):
            if block.pool.identity == identity:
                self.complete(block)
        for pool in self.pools[identity]:
            self._release_blocks(pool)

    def count_oversize(self, name: Literal["oversize_allocations", "oversize_segments"], size: int, sign: int) -> None:
        """Count a block or segment that is too large to be split."""
        if size >= self.conf.max_split_size:
            row = self.oversize[name]
            row[0] += sign
            row[1] = max(row[:2])
            row[2] += max(sign, 0)

    def _out_of_memory(self, requested: int, needed: int) -> SimulatedOutOfMemory:
        return SimulatedOutOfMemory(
            requested,
            needed,
            allocated_bytes=self.total.allocated_bytes,
            reserved_bytes=self.reserved,
            limit=self.limit,
            free=self.device.free,
        )

    def _new(self, pool: Pool, need: int, size: int, stream: int, requested: int) -> LinkedBlock | None:
        """torch: ``alloc_block``."""
        if self.limit is not None and self.reserved + size > self.limit:
            return None
        if self.conf.throw_on_cudamalloc_oom and self.device.capacity is not None:
            # Rounded down, as torch does here and not in `memory_limit`.
            maximum = int(self.conf.per_process_memory_fraction * self.device.capacity)
            if self.reserved + size > maximum:
                # Neither an OOM event nor a retry: torch raises out of the middle of the chain.
                self.counters["num_oom_rejections"] += 1
                raise self._out_of_memory(requested, size)
        if self.conf.expandable_segments:
            return self._expand(pool, need, stream)
        if not self.device.take(size):
            return None
        address = self.addresses.take(size)
        if address is None:
            self.device.give_back(size)
            return None
        block = LinkedBlock(address, size, stream, pool, self.shift(address))
        self._reserve(block.address, size, pool, stream, segments=1)
        self.count_oversize("oversize_segments", size, 1)
        return block

    def shift(self, address: int) -> int:
        """`LinkedBlock.shift` for a new segment."""
        self.age += 1
        return 0 if self.tie_break == "address" else (self.age << AGE_SHIFT) - address

    def _reserve(self, address: int, size: int, pool: Pool, stream: int, *, segments: int) -> None:
        self.reserved += size
        for usage in self._usages_of(pool):
            usage.reserve(segments, size)
        self.counters["num_device_alloc"] += 1
        self._log(SEGMENT_ALLOC if segments else SEGMENT_MAP, address, size, pool, stream)

    def _release(self, address: int, size: int, pool: Pool, stream: int, *, segments: int) -> None:
        self.device.give_back(size)
        self.reserved -= size
        for usage in self._usages_of(pool):
            usage.release(segments, size)
        self.counters["num_device_free"] += 1
        self._log(SEGMENT_FREE if segments else SEGMENT_UNMAP, address, size, pool, stream)

    def _usages_of(self, pool: Pool) -> tuple[Usage, ...]:
        """All that count a pool's segments."""
        usages = (self.total, self.usage[pool.small])
        if pool.identity == NO_POOL:
            return usages
        if pool.identity not in self.private_usage:
            self.private_usage[pool.identity] = (Usage(), (Usage(), Usage()))
        both, parts = self.private_usage[pool.identity]
        return *usages, both, parts[pool.small]

    def _log(self, action: int, address: int, size: int, pool: Pool, stream: int) -> None:
        if pool.identity != NO_POOL:
            self.pool_of_event[len(self.events)] = pool.identity
        self.events.append((action, address, size, stream))

    def _release_segment(self, block: LinkedBlock) -> None:
        """torch: ``release_block``."""
        if block.is_split:
            raise UsageError(
                "max_split_size_mb was changed while the allocator runs",
                f"{block!r} is larger and was split before",
                "torch gives a part of a segment back to the driver then, which the driver refuses",
                "Set max_split_size_mb from the start",
            )
        block.pool.remove(block)
        self._release(block.address, block.size, block.pool, block.stream, segments=1)
        self.addresses.give_back(block.address, block.size)
        self.count_oversize("oversize_segments", block.size, -1)

    def _release_blocks(self, pool: Pool) -> None:
        in_order = pool.in_order()
        for block in in_order:
            if block.range is None and not block.is_split:
                self._release_segment(block)
        for block in in_order:
            if block.range is not None:
                self._unmap(block, block.range)

    def _release_oversize(self, pool: Pool, need: int, stream: int) -> bool:
        """Free just enough of the blocks that are never split (torch: ``release_available_cached_blocks``)."""
        if self.conf.max_split_size == UNLIMITED:
            return False
        minimum = max(need, self.conf.max_split_size)
        keys = pool.sorted.get(stream, [])
        place = bisect_left(keys, minimum << SIZE_SHIFT)
        if place < len(keys) and pool.blocks[keys[place]].range is None:
            self._release_segment(pool.blocks[keys[place]])
            return True
        released = 0
        for block in [pool.blocks[key] for key in reversed(keys[:place])]:
            if released >= minimum or block.size < self.conf.max_split_size:
                break
            if block.range is None:
                released += block.size
                self._release_segment(block)
        return released >= minimum

    def _collect_garbage(self) -> None:
        """Free cached segments that were not used for long (torch: ``garbage_collect_cached_blocks``)."""
        threshold = int(self.conf.garbage_collection_threshold * (self.limit or 0))
        if self.reserved <= threshold:
            return
        target = self.reserved - threshold
        pool = self.pools[NO_POOL][True]
        # torch counts fully mapped expandable blocks here though it never frees them; so does this.
        candidates = [block for block in pool.in_order() if not block.is_split]
        total_age = sum(pool.searches - block.born for block in candidates)
        count = len(candidates)
        reclaimed, freed = 0, True
        while reclaimed < target and freed and count:
            threshold_age = total_age / count
            freed = False
            for block in pool.in_order():
                age = pool.searches - block.born
                if not block.is_split and block.range is None and age >= threshold_age:
                    freed = True
                    reclaimed += block.size
                    total_age -= age
                    count -= 1
                    self._release_segment(block)

    # ---- expandable segments -------------------------------------------------------------------------------------

    def _expand(self, pool: Pool, need: int, stream: int) -> LinkedBlock | None:
        """torch: ``try_allocate_expandable_block``."""
        block = self._expandable(pool, need, stream)
        if block is None:
            return None
        if not block.mapped and not self._map(block, min(block.size, need)):
            return None
        while block.size < need:
            following = block.next
            assert following is not None  # `_expandable` made sure of the room
            if not self._map(following, min(need - block.size, following.size)):
                return None
            block = following
        pool.remove(block)
        return block

    def _expandable(self, pool: Pool, need: int, stream: int) -> LinkedBlock | None:
        """First of free and unmapped blocks with room for a request (torch: ``find_expandable_block``)."""
        for block in pool.unmapped.get(stream, []):
            first = block
            if block.prev is not None and not block.prev.allocated and not block.prev.pending:
                first = block.prev
            room = 0
            each: LinkedBlock | None = first
            while each is not None and room < need and not each.allocated and not each.pending:
                room += each.size
                each = each.next
            if room >= need:
                return first
        page = self.page(small=pool.small)
        size = self.range_size(page, need)
        # What is larger than a whole range is more than the device has: torch finds that out page by page.
        address = self.addresses.take(size) if need <= size else None
        if address is None:
            return None
        made = LinkedBlock(address, size, stream, pool, self.shift(address))
        made.range = ExpandableRange(made.address, size, page)
        made.mapped = False
        pool.insert_unmapped(made)
        return made

    def page(self, *, small: bool) -> int:
        """Bytes of an expandable segment's page."""
        return SMALL_SEGMENT if small else self.conf.large_segment_size

    def range_size(self, page: int, need: int = 0) -> int:
        """Bytes of address space for an expandable segment: 1 1/8 of the device, in whole pages.

        Args:
            page: bytes of one.
            need: bytes that a device without end has at least.
        """
        capacity = max(_ENDLESS, need) if self.device.capacity is None else self.device.capacity
        return -(-(capacity + capacity // 8) // page) * page

    def _map(self, block: LinkedBlock, size: int) -> bool:
        """Put memory behind the first bytes of an unmapped block; False: the device has none left."""
        assert block.range is not None
        _, end = block.range.pages_around(block.address, block.address + size)
        size = end - block.address
        if not self.device.take(size):
            return False
        pool = block.pool
        pool.remove_unmapped(block)
        block.mapped = True
        if size < block.size:
            rest = LinkedBlock(end, block.size - size, block.stream, pool, block.shift)
            rest.mapped = False
            rest.range = block.range
            rest.put_after(block)
            pool.insert_unmapped(rest)
            block.size = size
        start = block.address
        merge(block, block.prev)
        merge(block, block.next)
        pool.insert(block)
        self._reserve(start, size, pool, block.stream, segments=0)
        return True

    def _unmap(self, block: LinkedBlock, home: ExpandableRange) -> None:
        """Give back the pages that lie wholly in a free block (torch: ``unmap_block``)."""
        start, end = home.pages_within(block.address, block.address + block.size)
        if start >= end:
            return
        pool = block.pool
        pool.remove(block)
        if block.address < start:
            before = LinkedBlock(block.address, start - block.address, block.stream, pool, block.shift)
            before.range = home
            before.put_before(block)
            pool.insert(before)
        if end < block.address + block.size:
            after = LinkedBlock(end, block.address + block.size - end, block.stream, pool, block.shift)
            after.range = home
            after.put_after(block)
            pool.insert(after)
        block.address, block.size = start, end - start
        block.mapped = False
        merge(block, block.prev)
        merge(block, block.next)
        pool.insert_unmapped(block)
        self._release(start, end - start, pool, block.stream, segments=0)
        if not block.is_split:
            pool.remove_unmapped(block)
            self.addresses.give_back(block.address, block.size)


_ENDLESS = 1 << 40  # bytes of a device without a capacity, where its expandable segments need to know


def _pools(identity: PoolId) -> tuple[Pool, Pool]:
    return Pool(identity, small=True), Pool(identity, small=False)


def _expandable_size(block: LinkedBlock) -> int:
    following = block.next
    return block.size + (following.size if following is not None and not following.mapped else 0)
