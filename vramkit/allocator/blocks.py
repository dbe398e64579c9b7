"""Blocks, and the pools that keep the free ones. Knows in which order they are found; not when they are made."""

from __future__ import annotations

from bisect import bisect_left, insort

from ..sizes import format_size
from .states import BlockUse, PoolId

# A free block's place in its stream's list is one integer, size first, then what breaks ties: it compares faster than
# a tuple, and a replay spends much of its time finding places. The tie is broken by `address + shift`: with a shift of
# 0 by the address, with one of `age << AGE_SHIFT` minus the segment's address by age, then address.
SIZE_SHIFT = 96
AGE_SHIFT = 48


class ExpandableRange:
    """The address range of one expandable segment, which is mapped page by page."""

    __slots__ = ("address", "page", "size")

    def __init__(self, address: int, size: int, page: int) -> None:
        self.address = address
        self.size = size
        """Bytes of address space."""
        self.page = page
        """Bytes that are mapped or unmapped at once."""

    def pages_around(self, start: int, end: int) -> tuple[int, int]:
        """Start and end of the pages that a range of addresses touches."""
        start, end = start - self.address, end - self.address
        return self.address + start // self.page * self.page, self.address - -end // self.page * self.page

    def pages_within(self, start: int, end: int) -> tuple[int, int]:
        """Start and end of the pages that lie wholly in a range of addresses."""
        start, end = start - self.address, end - self.address
        return self.address - -start // self.page * self.page, self.address + end // self.page * self.page


class Block:
    """A piece of a segment: what `CachingAllocator.malloc` hands out."""

    __slots__ = ("address", "allocated", "pending", "requested", "size", "stream")

    address: int
    size: int
    """Bytes, rounding and unsplit rest included."""
    requested: int
    """Bytes that were asked for; of a free block, what its last owner asked for."""
    stream: int
    allocated: bool
    """In use by whoever asked for it."""
    pending: bool
    """Given back, but another stream still uses it."""

    def __repr__(self) -> str:
        return f"Block({format_size(self.size)} at {self.address:#x}, {self.state})"

    @property
    def state(self) -> BlockUse:
        """The block's state in torch's words."""
        return "active_allocated" if self.allocated else "active_pending_free" if self.pending else "inactive"


class LinkedBlock(Block):
    """A block as the allocator keeps it: with its neighbours in the segment and the pool that it goes back to."""

    __slots__ = ("born", "mapped", "next", "pool", "prev", "range", "shift", "uses")

    def __init__(self, address: int, size: int, stream: int, pool: Pool, shift: int = 0) -> None:
        self.address = address
        self.shift = shift
        """The same for all blocks of a segment: among equally large blocks the lowest ``address + shift`` is taken."""
        self.size = size
        self.requested = 0
        self.stream = stream
        self.pool = pool
        self.allocated = False
        self.pending = False
        self.mapped = True
        """False: address space of an expandable segment without memory behind it."""
        self.prev: LinkedBlock | None = None
        """The block to the left in the same segment."""
        self.next: LinkedBlock | None = None
        self.range: ExpandableRange | None = None
        self.uses: set[int] | None = None
        """Other streams that use the block."""
        self.born = 0
        """The pool's count of searches when the block became free; its age for garbage collection counts from it."""

    @property
    def is_split(self) -> bool:
        """Whether the block is only a part of its segment."""
        return self.prev is not None or self.next is not None

    def renewed(self) -> LinkedBlock:
        """The block under a new handle, which takes its place; the old one is of a block that is not in use."""
        block = LinkedBlock(self.address, self.size, self.stream, self.pool, self.shift)
        block.requested, block.allocated, block.range = self.requested, self.allocated, self.range
        block.prev, block.next = self.prev, self.next
        if block.prev is not None:
            block.prev.next = block
        if block.next is not None:
            block.next.prev = block
        self.allocated = False
        return block

    def put_before(self, right: LinkedBlock) -> None:
        """Link the block in directly to the left of another."""
        self.prev, self.next = right.prev, right
        if self.prev is not None:
            self.prev.next = self
        right.prev = self

    def put_after(self, left: LinkedBlock) -> None:
        """Link the block in directly to the right of another."""
        self.prev, self.next = left, left.next
        if self.next is not None:
            self.next.prev = self
        left.next = self


class Pool:
    """The free blocks of one pool: small or large, of the program or of one private pool."""

    __slots__ = ("blocks", "identity", "searches", "small", "sorted", "unmapped")

    def __init__(self, identity: PoolId, *, small: bool) -> None:
        self.identity = identity
        self.small = small
        self.sorted: dict[int, list[int]] = {}  # stream -> keys in order
        self.blocks: dict[int, LinkedBlock] = {}  # key -> block
        self.unmapped: dict[int, list[LinkedBlock]] = {}  # stream -> unmapped blocks in order of address
        self.searches = 0  # counted only while garbage collection is on, as torch does

    def insert(self, block: LinkedBlock) -> None:
        key = block.size << SIZE_SHIFT | block.address + block.shift
        block.born = self.searches
        self.blocks[key] = block
        if block.stream in self.sorted:
            insort(self.sorted[block.stream], key)
        else:
            self.sorted[block.stream] = [key]

    def remove(self, block: LinkedBlock) -> None:
        key = block.size << SIZE_SHIFT | block.address + block.shift
        del self.blocks[key]
        keys = self.sorted[block.stream]
        del keys[bisect_left(keys, key)]

    def in_order(self) -> list[LinkedBlock]:
        """Free blocks by stream, size, address."""
        return [self.blocks[key] for stream in sorted(self.sorted) for key in self.sorted[stream]]

    def insert_unmapped(self, block: LinkedBlock) -> None:
        insort(self.unmapped.setdefault(block.stream, []), block, key=_address)

    def remove_unmapped(self, block: LinkedBlock) -> None:
        self.unmapped[block.stream].remove(block)


def _address(block: LinkedBlock) -> int:
    return block.address


def merge(block: LinkedBlock, neighbour: LinkedBlock | None) -> int:
    """Let a block swallow a free neighbour of the same segment; returns the bytes swallowed, 0: it may not."""
    if neighbour is None or neighbour.allocated or neighbour.pending or neighbour.mapped is not block.mapped:
        return 0
    if neighbour.mapped:
        neighbour.pool.remove(neighbour)
    else:
        neighbour.pool.remove_unmapped(neighbour)
    if block.prev is neighbour:
        block.address = neighbour.address
        block.prev = neighbour.prev
        if block.prev is not None:
            block.prev.next = block
    else:
        block.next = neighbour.next
        if block.next is not None:
            block.next.prev = block
    block.size += neighbour.size
    return neighbour.size
