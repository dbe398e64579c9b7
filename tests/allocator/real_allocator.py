"""Runs one program of allocations on torch's own allocator and on the simulator. Judges nothing.

The simulator is told the addresses that the driver gave, and nothing else.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.cuda import memory

from vramkit.allocator import NO_POOL, CachingAllocator, SegmentState, SimulatedOutOfMemory, segments_from_torch
from vramkit.tape.events import TORCH_ACTIONS, Action
from vramkit.torch_releases import tie_break_of

MIB = 1 << 20


def configure(conf: str) -> None:
    """Change the settings at run time."""
    _configure(conf)


# torch 2.8 has it for CUDA alone.
_configure = getattr(torch._C, "_accelerator_setAllocatorSettings", None) or torch.cuda.memory._set_allocator_settings


def _is_known(setting: str) -> bool:
    try:
        configure(setting)
    except (RuntimeError, ValueError):
        return False
    return True


KEPT = ("large_segment_size_mb:20", "expandable_segments:False", "throw_on_cudamalloc_oom:False")
DEFAULTS = ",".join(filter(_is_known, KEPT))
"""What torch does not reset by itself when settings change at run time, of what this torch knows."""
UNKNOWN = tuple(each.partition(":")[0] for each in KEPT if each not in DEFAULTS)
"""What only newer ones know."""

MAY_BE_A_SEGMENT = _is_known("max_split_size_mb:20")
"""Whether what is never split may begin at a large segment's size; torch 2.8 wants more."""

IN_POOLS_FREES_WAIT = tie_break_of(torch.__version__) == "address"
"""While a MemPool is used, torch 2.11 and older take it for a graph's capture, and look at no stream."""

Event = tuple[int, int, int, int]
Step = tuple[Any, ...]
"""("malloc", bytes, stream number), ("pooled", bytes, stream number, MemPool number), ("free", which of those alive),
("use", which, stream number), ("empty",), ("drop", MemPool number), ("conf", text), ("fraction", MiB of the limit)."""


@dataclass(frozen=True)
class Outcome:
    """What an allocator did with a program, and what it held afterwards."""

    events: tuple[Event, ...]
    failed: tuple[int, ...]
    """Numbers of the steps that ran out of memory."""
    stats: dict[str, int]
    segments: tuple[SegmentState, ...]
    pools: tuple[tuple[int, int], ...] = ()
    """torch's ids of the program's MemPools."""


_streams: list[torch.cuda.Stream] = []


def streams() -> list[torch.cuda.Stream]:
    """The default stream and two others, always the same."""
    if not _streams:
        _streams.extend([torch.cuda.default_stream(), torch.cuda.Stream(), torch.cuda.Stream()])
    return _streams


def clear() -> None:
    """Bring torch's allocator to the state of a new process."""
    torch._C._cuda_clearCublasWorkspaces()
    if torch.cuda.memory_allocated():
        gc.collect()  # what earlier tests dropped in cycles; a tenth of a second, so not for every example
    configure(DEFAULTS)
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    memory._record_memory_history(None)
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.reset_accumulated_memory_stats()
    assert torch.cuda.memory_reserved() == 0, "an earlier test in this process left tensors on the device"


def on_torch(program: Sequence[Step], conf: str) -> Outcome:
    """Run a program on torch's allocator, from an empty one."""
    clear()
    before = torch.cuda.memory_stats()
    memory._record_memory_history(context=None, max_entries=1_000_000)
    alive: list[torch.Tensor] = []
    pools: list[torch.cuda.MemPool | None] = []
    if any(what == "pooled" for what, *_ in program):
        pools += [torch.cuda.MemPool(), torch.cuda.MemPool()]
    identities = tuple(tuple(pool.id) for pool in pools if pool is not None)
    failed = []
    try:
        configure(conf)
        for number, (what, *arguments) in enumerate(program):
            try:
                _step(what, arguments, alive, pools)
            except torch.OutOfMemoryError:
                failed.append(number)
        snapshot = memory._snapshot()
        stats = torch.cuda.memory_stats()
    finally:
        memory._record_memory_history(None)
        alive.clear()
        pools.clear()
        # While the settings are the program's: torch counts a segment as oversize by the settings of the moment.
        torch.cuda.empty_cache()
        configure(DEFAULTS)
        torch.cuda.set_per_process_memory_fraction(1.0)
    counted = {
        name: value - _base(before, name)
        for name, value in stats.items()
        if not (name in before and "private_pools" in name)  # of a pool of an earlier program
    }
    return Outcome(
        _events(snapshot["device_traces"][torch.cuda.current_device()]),
        tuple(failed),
        counted,
        tuple(sorted(segments_from_torch(snapshot["segments"]), key=lambda segment: segment.address)),
        identities,
    )


def _events(trace: Sequence[dict[str, Any]]) -> tuple[Event, ...]:
    """The entries of a trace in torch's form that change memory."""
    return tuple(
        (
            int(TORCH_ACTIONS[entry["action"]]),
            entry["device_free"] if entry["action"] == "oom" else entry["addr"],
            entry["size"],
            entry["stream"],
        )
        for entry in trace
        if entry["action"] in TORCH_ACTIONS
    )


def _base(before: dict[str, int], name: str) -> int:
    """What of a statistic is left over from earlier programs: torch resets neither events nor oversize counts."""
    if name.startswith("num_"):
        return before[name]
    if name.startswith("oversize") and name.endswith((".current", ".peak")):
        return before[f"{name.partition('.')[0]}.current"]
    return 0


def _step(what: str, arguments: list[Any], alive: list[torch.Tensor], pools: list[torch.cuda.MemPool | None]) -> None:
    if what == "malloc":
        size, stream = arguments
        with torch.cuda.stream(streams()[stream]):
            alive.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    elif what == "pooled":
        *plain, number = arguments
        pool = pools[number]
        with nullcontext() if pool is None else torch.cuda.use_mem_pool(pool):
            _step("malloc", plain, alive, pools)
    elif what == "drop":
        if pools:
            pools[arguments[0]] = None
    elif what == "free":
        if alive:
            del alive[arguments[0] % len(alive)]
    elif what == "use":
        if alive:
            alive[arguments[0] % len(alive)].record_stream(streams()[arguments[1]])
    elif what == "empty":
        torch.cuda.empty_cache()
    elif what == "conf":
        configure(arguments[0])
    else:
        total = torch.cuda.get_device_properties("cuda").total_memory
        torch.cuda.set_per_process_memory_fraction(min(arguments[0] * MIB / total, 1.0))


class _Answers:
    """Gives each new segment the address that it had on torch's side."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.expected = [event for event in events if event[0] >= Action.SEGMENT_ALLOC]
        self.allocator: CachingAllocator | None = None

    def take(self, size: int) -> int:
        assert self.allocator is not None
        stats = self.allocator.memory_stats()
        done = stats["num_device_alloc"] + stats["num_device_free"] + stats["num_ooms"]
        # An expandable segment whose first page can't be had has its address long before an event tells it.
        came = (event for event in self.expected[done:] if event[0] in (Action.SEGMENT_ALLOC, Action.SEGMENT_MAP))
        return next(came, (0, 0, 0, 0))[1]

    def give_back(self, address: int, size: int) -> None:
        """Recorded addresses are never used up."""


def on_simulator(program: Sequence[Step], conf: str, real: Outcome, **options: Any) -> Outcome:
    """Run a program on the simulator, which gets the driver's addresses from what torch did.

    Args:
        options: of `CachingAllocator`, for wrong ones that must not pass.
    """
    clear()
    free, total = torch.cuda.mem_get_info()
    answers = _Answers(real.events)
    allocator = CachingAllocator(total, conf, context=total - free, addresses=answers, history=True, **options)
    answers.allocator = allocator
    numbers = [stream.cuda_stream for stream in streams()]
    pools = list(real.pools)
    alive: list[Any] = []
    failed = []
    for number, (what, *arguments) in enumerate(program):
        if what in ("malloc", "pooled"):
            pool = pools[arguments[2]] if what == "pooled" else NO_POOL
            if arguments[0] and (pool == NO_POOL or not IN_POOLS_FREES_WAIT):
                # Virtual kernels take no time, so whatever was waiting is over at the next allocation.
                allocator.synchronize()
            try:
                alive.append(allocator.malloc(arguments[0], numbers[arguments[1]], pool=pool))
            except SimulatedOutOfMemory:
                failed.append(number)
        elif what == "free":
            if alive:
                allocator.free(alive.pop(arguments[0] % len(alive)))
        elif what == "use":
            if alive and (block := alive[arguments[0] % len(alive)]) is not None:
                allocator.record_stream(block, numbers[arguments[1]])
        elif what == "empty":
            allocator.empty_cache()
        elif what == "drop":
            if pools and pools[arguments[0]] != NO_POOL:
                allocator.release_pool(pools[arguments[0]])
                allocator.empty_cache(pools[arguments[0]])
                pools[arguments[0]] = NO_POOL
        elif what == "conf":
            allocator.configure(arguments[0])
        else:
            allocator.set_memory_fraction(min(arguments[0] * MIB / total, 1.0))
    [trace] = allocator.snapshot()["device_traces"]
    return Outcome(_events(trace), tuple(failed), allocator.memory_stats(), allocator.segments())


def comparable(events: Sequence[Event], *, pools: bool = False) -> list[Event]:
    """Events with runs of those sorted that torch makes in the order of a hash table.

    Those are completed frees, as it walks its streams; and, in programs with private pools, segments that go back, as
    it walks the pools that nobody uses.
    """
    unordered = {Action.FREE_COMPLETED, *([Action.SEGMENT_FREE, Action.SEGMENT_UNMAP] if pools else [])}
    result: list[Event] = []
    run: list[Event] = []
    for event in [*events, (-1, 0, 0, 0)]:
        if event[0] in unordered:
            run.append(event)
        else:
            result += [*sorted(run), event]
            run = []
    return result[:-1]
