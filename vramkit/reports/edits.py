"""A tape as it would have been with some allocations smaller, or gone earlier: what would be reserved then. Knows tapes
and the allocator, and no advice.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ..allocator import CachingAllocator
from ..errors import VramkitError
from ..tape.events import EVENT, Action, Ints, Phase, Tape

_MOST_EVENTS = 1 << 19
"""Events that are replayed for a report, at most: each takes a microsecond or two."""
_MOST_AT_ONCE = 1 << 18


@dataclass(frozen=True, eq=False, slots=True)
class Edit:
    """What a change does to a tape's allocations."""

    smaller: Ints
    """Bytes by which each block is smaller; all of it: it is not made, or it is gone from ``since`` on."""
    since: Ints | None = None
    """Of each allocation the event before which it is gone; None: none of them is made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """What a tape comes to in torch's allocator."""

    allocated: int
    reserved: int


@dataclass
class Replays:
    """Replays of one tape, as it is and edited, as far as that can be proved and does not take long."""

    tape: Tape
    _left: int = _MOST_EVENTS
    _is_exact: bool | None = field(default=None, init=False)

    def edited(self, edit: Edit) -> Peaks | None:
        """The peaks with an edit; None: the tape does not prove them.

        It does where a replay of it, as it is, comes to the peak that was recorded, and where nothing of the edit was
        there before the first event: in what else its segment would have been, nobody knows.
        """
        touched = edit.smaller > 0
        if not touched.any() or (touched & (self.tape.allocations["born"] < 0)).any():
            return None
        if self._is_exact is None:
            plain = self.run(self.tape)
            self._is_exact = plain is not None and plain.reserved == self.tape.peak_reserved
        return self.run(_edited(self.tape, edit)) if self._is_exact else None

    def run(self, tape: Tape, conf: str = "") -> Peaks | None:
        """The peaks of a tape of this one's requests; None: they can't be known, or it would take too long.

        Args:
            tape: its requests.
            conf: settings beside its own.
        """
        count = len(tape.events)
        if count > min(self._left, _MOST_AT_ONCE) or tape.has_graph_pools or tape.device == "cpu":
            return None
        self._left -= count
        try:
            allocator = CachingAllocator(conf=",".join(filter(None, (tape.alloc_conf, conf))), tie_break=tape.tie_break)
            found = allocator.replay(tape, flushes=not retries(self.tape))
        except (VramkitError, LookupError, ValueError, OverflowError):  # settings unknown here, or no allocator's file
            return None
        return Peaks(allocated=found.peak_allocated, reserved=found.peak_reserved) if found.fits else None


def retries(tape: Tape) -> int:
    """How often a pass gave back what was cached and asked the device again for the same request."""
    events = tape.events
    begins = np.flatnonzero(tape.flushes & (events["phase"] != Phase.OUTSIDE))
    released = np.isin(events["action"], (Action.SEGMENT_FREE, Action.SEGMENT_UNMAP))
    kept = np.flatnonzero(~released)
    following = kept[np.minimum(np.searchsorted(kept, begins), len(kept) - 1)] if len(kept) else begins
    asks = np.isin(events["action"][following], (Action.SEGMENT_ALLOC, Action.SEGMENT_MAP))
    return int(asks.sum())


def _edited(tape: Tape, edit: Edit) -> Tape:
    """The requests of a tape with an edit. Only its actions and sizes are true, which is what a replay needs."""
    table, events = tape.allocations.copy(), tape.events
    block, born = table["block"], table["born"]
    touched = edit.smaller > 0
    shorter = np.zeros(len(table), bool) if edit.since is None else touched & (edit.since > born)
    resized = touched & ~shorter
    part = 1 - edit.smaller[resized] / np.maximum(block[resized], 1)
    table["requested"][resized] = np.ceil(table["requested"][resized] * part).astype(np.int64)  # 0: it is not made
    rows = np.flatnonzero(shorter)
    if edit.since is not None and len(rows):
        until = np.where(table["died"] < 0, len(events), table["died"])
        rows = rows[edit.since[rows] < until[rows]]
        moved = np.isin(events["allocation"], rows) & np.isin(events["action"], (Action.FREE, Action.FREE_COMPLETED))
        actions = [Action.FREE] + [Action.FREE_COMPLETED] * bool((events["action"] == Action.FREE_COMPLETED).any())
        frees = np.zeros((len(rows), len(actions)), EVENT)
        frees["action"], frees["allocation"] = actions, rows[:, None]
        places = np.concatenate([np.flatnonzero(~moved), np.repeat(edit.since[rows] - 0.5, len(actions))])
        events = np.concatenate([events[~moved], frees.reshape(-1)])[np.argsort(places, kind="stable")]
    return replace(tape, events=events, allocations=table)
