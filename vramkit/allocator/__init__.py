"""The caching allocator of torch's CUDA backend, without torch: simulated, and followed through a recorded trace."""

from __future__ import annotations

from .blocks import Block
from .conf import AllocatorConf, memory_limit
from .core import DeviceCachingAllocator
from .device import Addresses, AddressOrder, AddressSpace
from .replay import Replay
from .reserve import SimulatedOutOfMemory
from .simulator import CachingAllocator
from .states import NO_POOL, BlockState, PoolId, SegmentState, allocated_blocks, segments_from_torch
from .trace_backward import AmbiguousBlock, InitialState, initial_state
from .trace_forward import ImpossibleEvent, final_state, follow

__all__ = [
    "NO_POOL",
    "AddressOrder",
    "AddressSpace",
    "Addresses",
    "AllocatorConf",
    "AmbiguousBlock",
    "Block",
    "BlockState",
    "CachingAllocator",
    "DeviceCachingAllocator",
    "ImpossibleEvent",
    "InitialState",
    "PoolId",
    "Replay",
    "SegmentState",
    "SimulatedOutOfMemory",
    "allocated_blocks",
    "final_state",
    "follow",
    "initial_state",
    "memory_limit",
    "segments_from_torch",
]
