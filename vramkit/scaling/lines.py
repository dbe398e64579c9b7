"""What sizes between two others ask for, where a third one shows that it can be said. Knows tapes; no torch.

Lasting requests have to lie on lines. Passing ones, which are mostly a kernel's workspace, need not: where they don't,
a size gets two tapes, one without them and one with twice the largest that was seen. Only if both take the same does it
not matter what they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..tape.events import Ints, Tape
from .requests import Family, Requests, on_line, two_for


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Lines through two sizes' requests, which a third one's confirm; `through` draws them."""

    family: Family
    """The two."""
    evenness: int
    """The lowest of the three sizes'; see `evenness`."""
    maximum: Ints
    """Bytes that each passing request had at most; -1: it lies on a line."""

    @classmethod
    def through(cls, one: Requests, other: Requests, third: Requests) -> Lines | None:
        """Lines through two, if the third is where they have it; None: it is not."""
        if not one.pattern == other.pattern == third.pattern:
            return None
        if not (np.array_equal(one.place, other.place) and np.array_equal(one.place, third.place)):
            return None  # somewhere a kernel was chosen that takes more than others do, or less
        sizes = [each.tape.allocations["requested"][each.lasting] for each in (one, other, third)]
        said = on_line(one.batch_size, other.batch_size, third.batch_size, sizes[0], sizes[1])
        if not np.array_equal(said, sizes[2]):
            return None
        passing = [each.tape.allocations["requested"][each.passing] for each in (one, other, third)]
        said = on_line(one.batch_size, other.batch_size, third.batch_size, passing[0], passing[1])
        return cls(
            family=Family({one.batch_size: one, other.batch_size: other}),
            evenness=min(evenness(each.batch_size) for each in (one, other, third)),
            maximum=np.where(said == passing[2], -1, np.max(passing, 0)),
        )

    def at(self, batch_size: int) -> tuple[Tape, ...]:
        """One tape; or two, between which a size's own must be."""
        tape = self.family.at(batch_size)
        is_off = self.maximum >= 0
        if not is_off.any():
            return (tape,)
        nearest, _ = two_for(batch_size, [*self.family.members])
        rows = self.family.members[nearest].passing[is_off]
        found = []
        for times in (0, 2):
            allocations = tape.allocations.copy()
            allocations["requested"][rows] = times * self.maximum[is_off]
            found.append(replace(tape, allocations=allocations))
        return tuple(found)


def evenness(batch_size: int) -> int:
    """The largest power of two that divides a size.

    What kernels round up to a power of two lies on a line at multiples of it, and at other sizes above.
    """
    return batch_size & -batch_size
