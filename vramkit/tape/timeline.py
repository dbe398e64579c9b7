"""A tape's memory over time, a column for each category. Knows how to sum a tape; draws nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from typing_extensions import deprecated

from ..errors import UsageError
from .breakdown import Breakdown, breakdown, category_of
from .events import Category, Ints, Tape


@dataclass(frozen=True, eq=False)
class Timeline:
    """Bytes after each event of a tape: row 0 is before the first event, row ``i + 1`` after event ``i``.

    ::

        timeline = profile.timeline
        timeline.of(Category.ACTIVATION).max()
    """

    tape: Tape
    outside: int = 0
    """Bytes on the device that are not this allocator's; 0: not known."""

    def __len__(self) -> int:
        return len(self.tape.events) + 1

    def __repr__(self) -> str:
        return f"Timeline({len(self):,} moments on {self.tape.device})"

    @cached_property
    def time(self) -> Ints:
        """Microseconds since the first event; shape ``(moments,)``."""
        return np.concatenate([np.zeros(1, np.int64), self.tape.events["time"]])

    @cached_property
    def by_category(self) -> Ints:
        """Bytes asked for; shape ``(moments, categories)``, columns in the order of `Category`."""
        allocations = self.tape.allocations
        changes = np.zeros((len(self), len(Category)), np.int64)
        category, size = allocations["category"].astype(np.int64), allocations["requested"]
        # Births before the tape go to row 0; no two allocations share an event, so plain indexing would do for others.
        np.add.at(changes, (allocations["born"] + 1, category), size)
        dead = allocations["died"] >= 0
        np.add.at(changes, (allocations["died"][dead] + 1, category[dead]), -size[dead])
        np.cumsum(changes, axis=0, out=changes)
        return changes

    def of(self, category: Category | str) -> Ints:
        """Bytes of one category; shape ``(moments,)``.

        Args:
            category: it, or its name: ``Category.ACTIVATION``, "ACTIVATION" or "activations".

        Raises:
            UsageError: there is no such category.
        """
        column: Ints = self.by_category[:, category_of("A category's bytes over time were asked for", category)]
        return column

    @cached_property
    def allocated(self) -> Ints:
        """``memory_allocated()``, in bytes; shape ``(moments,)``."""
        return np.concatenate([np.array([self.tape.initial_allocated]), self.tape.allocated])

    @cached_property
    def reserved(self) -> Ints:
        """``memory_reserved()``, in bytes; shape ``(moments,)``."""
        return np.concatenate([np.array([self.tape.initial_reserved]), self.tape.reserved])

    @property
    def graph_pools(self) -> Ints:
        """Bytes that private pools hold and nothing has; see `Breakdown.graph_pools`; shape ``(moments,)``."""
        return self.tape.graph_pools

    @property
    def slack(self) -> Ints:
        """Bytes in blocks beyond what was asked for; shape ``(moments,)``."""
        requested: Ints = self.by_category.sum(axis=1)
        return self.allocated - requested

    def breakdown_at(self, moment: int) -> Breakdown:
        """The breakdown at one row.

        Args:
            moment: row, from 0; negative counts from the end.

        Raises:
            UsageError: there is no such row.
        """
        if not hasattr(moment, "__index__") or not -len(self) <= moment < len(self):
            raise UsageError(
                "The breakdown at a moment was asked for",
                f"of {moment!r:.60}",
                f"There are {len(self):,} moments: one before the first event, and one after each",
                "Give the row of one, such as timeline.peak_moment; -1 is the last",
            )
        parts = [int(size) for size in self.by_category[moment]]
        allocated, reserved = int(self.allocated[moment]), int(self.reserved[moment])
        slack = allocated - sum(parts)
        free = max(0, reserved - allocated)
        pools = min(free, int(self.graph_pools[moment]))
        return breakdown(parts, slack=slack, cached=free - pools, graph_pools=pools, outside=self.outside)

    @deprecated("Timeline.at(moment) is Timeline.breakdown_at(moment) now: at() of an estimate means a batch size")
    def at(self, moment: int) -> Breakdown:
        """The old name of ``breakdown_at``."""
        return self.breakdown_at(moment)

    @property
    def peak_moment(self) -> int:
        """The first row at which ``allocated`` was highest."""
        return int(self.allocated.argmax())
