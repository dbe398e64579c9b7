"""Steps of different lengths, one after the other, through one allocator: what a long training takes over time.

A tape of three steps is cut into its steps: what each asks for, what it gives back of its own, and what of the step
before. Such pieces, of tapes at different lengths, are then served in any order. Knows tapes and the simulator; no
torch, and not where the tapes come from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..allocator import DeviceCachingAllocator
from ..allocator.blocks import LinkedBlock
from ..allocator.replay import BOTH, FLUSH, requests_in
from ..allocator.reserve import SimulatedOutOfMemory
from ..tape.action_codes import ALLOC, FREE, FREE_COMPLETED
from ..tape.events import Ints, Tape

STEPS = 3
"""Of a tape that is cut: the first makes the optimizer's state, the third frees what the second left."""

_OWN, _LEFT, _LASTING = 0, 1, 2  # whose allocation a free is of: this step's, the one's before, the first one's


class NotAlikeError(Exception):
    """A program's steps can't be put in another order.

    Args:
        why: as a sentence goes on.
        instead: what to do.
    """

    def __init__(
        self, why: str, instead: str = "Estimate a step that does the same each time and leaves nothing behind"
    ) -> None:
        super().__init__(why)
        self.instead = instead


@dataclass(frozen=True, slots=True)
class Piece:
    """One step's requests."""

    requests: list[tuple[int, int, int, int, int]]
    """Code, whose, number, and of an allocation bytes and stream."""
    leaves: list[int]
    """Numbers of its allocations that the next step frees, in order."""
    lasts: list[int]
    """Numbers of those that nothing frees."""


def pieces_of(tape: Tape) -> tuple[Piece, Piece, Piece]:
    """The first step, with what comes before it; the second; and the third, as which all others are.

    Raises:
        NotAlikeError: the third step is not like the second.
    """
    if tape.has_graph_pools:
        raise NotAlikeError("it captures CUDA graphs, of which each length has one of its own", "Estimate it without")
    if not len(tape.events) or int(tape.events["step"].max()) < STEPS - 1:
        raise NotAlikeError(f"it has fewer than {STEPS} steps", f"Estimate it with steps={STEPS}")
    if (tape.allocations["born"] < 0).any():
        raise NotAlikeError("it begins with memory that was there before")
    step = np.minimum(tape.events["step"].astype(np.int64), STEPS)  # what comes after the last step is not looked at
    born = step[tape.allocations["born"]]
    died = np.where(tape.allocations["died"] >= 0, step[tape.allocations["died"]], STEPS)
    left = [np.flatnonzero((born == number) & (died == number + 1)) for number in range(STEPS)]
    lasts = np.flatnonzero((born == 0) & (died >= STEPS))
    if ((born == 0) & (died == 2)).any() or ((born == 1) & (died >= STEPS)).any():
        raise NotAlikeError("its second step leaves what its third does not free")
    if len(left[1]) != len(left[2]):
        raise NotAlikeError("its third step leaves more, or less, for the next one than its second")
    places = [{row: number for number, row in enumerate(rows.tolist())} for rows in (*left, lasts)]
    by_step: list[list[tuple[int, int, int, int, int]]] = [[] for _ in range(STEPS)]
    requested, streams = tape.allocations["requested"].tolist(), tape.allocations["stream"].tolist()
    births = born.tolist()
    for index, code, row in requests_in(tape, flushes=True):
        now = int(step[index])
        if now >= STEPS:
            break
        if code == FLUSH:
            by_step[now].append((code, _OWN, 0, 0, 0))
        elif births[row] == now:
            by_step[now].append((code, _OWN, row, requested[row], streams[row]))
        elif row in places[births[row]]:
            by_step[now].append((code, _LEFT, places[births[row]][row], 0, 0))
        else:
            raise NotAlikeError("a stream gives back what an earlier step has freed")
    first, second, third = (Piece(requests, rows.tolist(), []) for requests, rows in zip(by_step, left, strict=True))
    return Piece(first.requests, first.leaves, lasts.tolist()), second, third


@dataclass
class Course:
    """What an allocator came to over many steps."""

    allocated: Ints
    """Highest ``memory_allocated()`` in each step, bytes; shape ``(steps,)``."""
    reserved: Ints
    """Highest ``memory_reserved()`` in each step, bytes; shape ``(steps,)``."""
    failed: int = -1
    """The step in which a request could not be served, after which there are none; -1: all were."""
    simulated: int = 0
    """How many of the steps were served; the others repeat one that was, from the same blocks."""


def course_of(
    pieces: Mapping[int, tuple[Piece, Piece, Piece]], lengths: Sequence[int], allocator: DeviceCachingAllocator
) -> Course:
    """Serve a step of each length.

    Args:
        pieces: of every length. All leave as many allocations for the next step.
        lengths: of the steps, in order.
        allocator: one that has served nothing.
    """
    found = Course(allocated=np.zeros(len(lengths), np.int64), reserved=np.zeros(len(lengths), np.int64))
    server = _Server(allocator)
    repeats = not allocator.conf.looks_at_capacity  # else what decides is more than which blocks there are
    # From a state, at a length: the next state, and the two peaks. States have numbers.
    known: list[dict[int, tuple[int, int, int]]] = []
    numbers: dict[int, int] = {}
    state = live = -1
    for index, length in enumerate(lengths):
        kind = min(index, STEPS - 1)
        piece = pieces[length][kind]
        seen = known[state].get(length) if kind == STEPS - 1 and repeats else None
        if seen is None:
            try:
                for each in _way(known, live, state) if repeats else ():
                    server.serve(pieces[each][-1])
                allocated, reserved = server.serve(piece)
            except SimulatedOutOfMemory:
                found.failed = index
                return Course(found.allocated[:index], found.reserved[:index], index, found.simulated)
            found.simulated += 1
            number = -1
            if repeats and index >= STEPS - 2:
                number = numbers.setdefault(server.state(), len(numbers))
                known += [{}] * (number == len(known))
            seen = number, allocated, reserved
            if state >= 0:
                known[state][length] = seen
            live = number
        state, found.allocated[index], found.reserved[index] = seen
    return found


def _way(known: Sequence[Mapping[int, tuple[int, int, int]]], start: int, end: int) -> list[int]:
    """Lengths of the steps that lead from one state to another, the fewest."""
    came: dict[int, tuple[int, int]] = {start: (-1, 0)}
    pending = deque([start])
    while end not in came:
        here = pending.popleft()
        for length, (state, _, _) in known[here].items():
            if state not in came:
                came[state] = here, length
                pending.append(state)
    way = []
    while end != start:
        end, length = came[end]
        way.append(length)
    return way[::-1]


@dataclass
class _Server:
    """An allocator in the middle of a training."""

    allocator: DeviceCachingAllocator
    left: list[LinkedBlock | None] = field(default_factory=list)
    """What the last step left for the next."""

    def serve(self, piece: Piece) -> tuple[int, int]:
        """Serve a step's requests. Returns: the highest allocated and reserved bytes meanwhile."""
        allocator, left = self.allocator, self.left
        allocator.reset_peak_memory_stats()
        own: dict[int, LinkedBlock | None] = {}
        round_size, serve, free = allocator.conf.round_size, allocator.serve, allocator.free
        for code, whose, number, size, stream in piece.requests:
            if code == ALLOC:
                own[number] = serve(size, round_size(size), stream) if size else None
                continue
            if code == FLUSH:
                allocator.empty_cache()
                continue
            block = own[number] if whose == _OWN else left[number]
            if block is None:
                continue
            if code == BOTH:
                free(block)
            elif code == FREE:
                allocator.give_back(block)
            elif code == FREE_COMPLETED and block.pending:
                allocator.complete(block)
        self.left = [own[number] for number in piece.leaves]
        allocator.events.clear()
        return allocator.peak_allocated_bytes, allocator.peak_reserved_bytes

    def state(self) -> int:
        """A number for all that decides what comes next: equal for equal blocks."""
        pools = [
            (block.address, block.size, block.shift)
            for pair in self.allocator.pools.values()
            for pool in pair
            for block in pool.blocks.values()
        ]
        held = [(block.address, block.size) for block in self.allocator.active.values()]
        left = tuple(0 if block is None else block.address for block in self.left)
        return hash((frozenset(pools), frozenset(held), left))
