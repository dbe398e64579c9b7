"""A step's requests at any batch size, from those at a few: the same events, with sizes on a line. Knows tapes; no
torch, and not what a request's answer is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from ..tape.events import Action, Ints, Table, Tape

_ALLOC, _FREE, _FREE_COMPLETED = int(Action.ALLOC), int(Action.FREE), int(Action.FREE_COMPLETED)
_FLUSH = int(Action.SEGMENT_FREE)


@dataclass(frozen=True, kw_only=True)
class Requests:
    """What a program asked of the allocator at one batch size.

    Its *passing* allocations are those that nothing came between their birth and their end, but for others like them:
    mostly a kernel's workspace. Which of them there are depends on the kernels that are chosen, and so, here and there,
    on the batch. The others, with all frees, are what a program always does.
    """

    batch_size: int
    tape: Tape
    """Allocations, frees and calls of ``empty_cache()`` (as a single SEGMENT_FREE), and nothing else."""
    lasting: Ints
    """Rows of the tape's allocations that the program made and that are not passing, in order."""
    passing: Ints
    """Rows of those that are, in order."""
    place: Ints
    """Of each passing one, how many events of the others came before it."""
    pattern: bytes
    """Equal for two that differ only in sizes, and in what is passing."""

    def asks_as(self, tape: Tape) -> bool:
        """Whether a tape's requests are these, in order and to the byte."""
        mine, others = self.tape.events, tape.events
        return (
            len(mine) == len(others)
            and all(np.array_equal(mine[name], others[name]) for name in ("action", "allocation", "stream"))
            and np.array_equal(_pools(mine), _pools(others))
            and np.array_equal(self.tape.allocations["requested"], tape.allocations["requested"])
        )


def requests_of(batch_size: int, tape: Tape, *, end: int | None = None, flushes: bool = True) -> Requests:
    """The requests of a tape.

    Args:
        batch_size: what it was run with.
        tape: of some steps.
        end: index of the first event that does not belong to them any more; None: all do.
        flushes: take segments that went back as calls of ``empty_cache()``; False: memory was short, and that was why.
    """
    stop = len(tape.events) if end is None else end
    events = tape.events[:stop]
    action = events["action"]
    kept = np.flatnonzero((action <= _FREE_COMPLETED) | (tape.flushes[:stop] & flushes))
    events = events[kept].copy()
    events["action"][events["action"] > _FREE_COMPLETED] = _FLUSH

    rows = np.flatnonzero(tape.allocations["born"] < stop)
    allocations = tape.allocations[rows].copy()
    place = np.full(len(tape.events) + 1, -1, np.int64)  # of each event; the last is for "never"
    place[kept] = np.arange(len(kept))
    for name in ("born", "died"):
        allocations[name] = np.where(allocations[name] >= 0, place[allocations[name]], -1)
    row_of = np.full(len(tape.allocations) + 1, -1, np.int64)
    row_of[rows] = np.arange(len(rows))
    events["allocation"] = row_of[events["allocation"]]
    passes = tape.passes.copy()
    for name in ("begin", "end"):
        passes[name] = np.searchsorted(kept, passes[name])
    short = replace(tape, events=events, allocations=allocations, passes=passes)

    is_passing = _passing(short)
    passing = np.flatnonzero(is_passing)
    is_theirs = np.append(is_passing, False)[events["allocation"]]
    return Requests(
        batch_size=batch_size,
        tape=short,
        lasting=np.flatnonzero(~is_passing & (allocations["born"] >= 0)),
        passing=passing,
        place=np.cumsum(~is_theirs)[allocations["born"][passing]],
        pattern=_pattern(events[~is_theirs]),
    )


def _passing(tape: Tape) -> npt.NDArray[np.bool_]:
    """Which allocations pass; shape ``(allocations,)``."""
    found = np.zeros(len(tape.allocations), np.bool_)
    open_rows: list[int] = []  # what was made since the last event that stays, or -1 for that event
    steps = zip(tape.events["action"].tolist(), tape.events["allocation"].tolist(), strict=True)
    for action, row in steps:
        if action == _ALLOC:
            open_rows.append(row)
        elif action == _FREE and open_rows and open_rows[-1] == row:
            found[open_rows.pop()] = True
        elif action != _FREE_COMPLETED or not found[row]:
            open_rows.append(-1)
    return found


def _pattern(events: Table) -> bytes:
    """Digest of what happened to which allocation, numbered as they first appear: addresses order those from before."""
    row = _numbered(events["allocation"].astype(np.int64))
    table = np.stack([events["action"].astype(np.int64), events["stream"], row, _pools(events)])
    return hashlib.blake2b(np.ascontiguousarray(table).tobytes(), digest_size=16).digest()


def _pools(events: Table) -> Ints:
    """Each event's private pool, numbered from 1 on as they first appear: torch counts their ids up; 0: none."""
    major, minor = events["pool"].astype(np.int64).T
    return _numbered(np.append(0, major << 32 | minor))[1:]


def _numbered(values: Ints) -> Ints:
    """Each value as a number, from 0 on, in the order in which they first appear; shape ``(values,)``."""
    _, first, place = np.unique(values, return_index=True, return_inverse=True)
    number = np.empty_like(first)
    number[np.argsort(first)] = np.arange(len(first))
    return number[place]


def two_for(batch_size: int, known: Sequence[int]) -> tuple[int, int]:
    """Which two of some sizes to draw a line through, to see where it is at another.

    The nearest; and the nearest to that which is at least half as far away from it as the other is, as a line through
    two close points magnifies what they are off.
    """
    first = min(known, key=lambda size: abs(size - batch_size))
    others = [size for size in known if size != first]
    far = [size for size in others if 2 * abs(size - first) >= abs(batch_size - first)]
    second = min(far, key=lambda size: abs(size - first)) if far else max(others, key=lambda size: abs(size - first))
    return first, second


@dataclass
class Family:
    """Requests at several batch sizes that have one pattern."""

    members: dict[int, Requests] = field(default_factory=dict)
    """By batch size, in the order in which they came."""

    def at(self, batch_size: int) -> Tape:
        """The tape at a batch size: the nearest member's, its sizes on the line through that and another one.

        Sizes on a line are exact. One that is not (rounded up to something, or capped) is off by what the line misses,
        which is little where a member is near.

        Raises:
            ValueError: there are not two members.
        """
        first, second = two_for(batch_size, [*self.members])
        one, other = self.members[first], self.members[second]
        allocations = one.tape.allocations.copy()
        sizes = allocations["requested"]
        others = other.tape.allocations["requested"]
        line = partial(on_line, first, second, batch_size)
        sizes[one.lasting] = line(sizes[one.lasting], others[other.lasting])
        # What passes is paired where as much of it is at the same place. The rest may grow with the batch, or not.
        places = max(one.place.max(initial=0), other.place.max(initial=0)) + 1
        counts, other_counts = (np.bincount(each.place, minlength=places) for each in (one, other))
        is_paired = (counts == other_counts)[one.place]
        pairs = one.passing[is_paired], other.passing[(counts == other_counts)[other.place]]
        sizes[pairs[0]] = line(sizes[pairs[0]], others[pairs[1]])
        alone = one.passing[~is_paired]
        sizes[alone] = np.ceil(sizes[alone] * max(1.0, batch_size / first)).astype(np.int64)
        return replace(one.tape, allocations=allocations)

    @property
    def grows(self) -> bool:
        """Whether any lasting request depends on the batch."""
        ends = (self.members[min(self.members)], self.members[max(self.members)])
        small, large = (each.tape.allocations["requested"][each.lasting] for each in ends)
        return bool((small != large).any())


def on_line(first: int, second: int, at: int, one: Ints, other: Ints) -> Ints:
    """Bytes at a batch size, from those at two others; rounded up.

    Args:
        first, second: the two sizes.
        at: the size that is asked for.
        one, other: bytes at the two.
    """
    # In two parts, as a product of bytes and rows can pass 64 bits; one of rows and rows can't.
    whole, rest = np.divmod(other - one, second - first)
    part = -(-rest * (at - first) // (second - first))
    result: Ints = np.maximum(one + whole * (at - first) + part, np.minimum(one, other) > 0)
    return result


@dataclass
class Families:
    """All requests that were seen, those together that align."""

    _by_pattern: dict[bytes, Family] = field(default_factory=dict)

    def add(self, requests: Requests) -> Family:
        """Take in what a run asked for.

        Returns:
            The family that it belongs to; with one member alone where it aligns with none before it.
        """
        family = self._by_pattern.setdefault(requests.pattern, Family())
        family.members[requests.batch_size] = requests
        return family

    def of(self, requests: Requests) -> Family:
        """The family of something that was added."""
        return self._by_pattern[requests.pattern]

    def nearest(self, batch_size: int) -> Family | None:
        """The family that knows most of a batch size: of at least two members, one of which is nearest to it."""
        able = [family for family in self._by_pattern.values() if len(family.members) > 1]
        return min(able, key=lambda family: min(abs(size - batch_size) for size in family.members), default=None)
