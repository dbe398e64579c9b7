"""What each of many batch sizes takes on a card: a few are run, and what lies between two of them is replayed where a
third run shows that it may be. Knows sessions of an estimate and tapes; no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..allocator import AllocatorConf
from ..engines import Session
from ..engines.enough_memory import enough
from ..gpus import GPU
from ..tape.events import Tape
from .lines import Lines, evenness
from .replays import allocator_of, conf_of, replayed
from .requests import Requests, requests_of


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSizeRow:
    """What one batch size needs."""

    batch_size: int
    peak_allocated: int
    """Highest ``memory_allocated()``, bytes."""
    peak_reserved: int
    """Highest ``memory_reserved()``, bytes."""
    used: int
    """``peak_reserved`` and the CUDA context, bytes: what ``nvidia-smi`` would show at most."""
    capacity: int
    """Bytes of the card."""
    fits: bool
    """The program ran to its end on the card. Where False, the figures are of the same card with enough memory."""
    was_run: bool
    """False: requests of other sizes lie on straight lines, as a run of a third size confirmed. This size's were read
    off these lines, and served by the simulated allocator."""


@dataclass
class Rows:
    """Rows of one program on one card.

    Args:
        session: runs the program.
        gpu: the card.
    """

    session: Session
    gpu: GPU
    rows: dict[int, BatchSizeRow] = field(default_factory=dict)
    _requests: dict[int, Requests] = field(default_factory=dict)  # of sizes that a replay may be held against

    def know(self, size: int, tape: Tape, *, fits: bool) -> None:
        """Take in a size that was run: on the card, or where that was too small, with enough memory."""
        self._keep(size, tape, tape.peak_allocated, tape.peak_reserved)
        self._add(size, tape.peak_allocated, tape.peak_reserved, fits=fits)

    def fill(self, sizes: Sequence[int]) -> None:
        """Find out what some sizes take.

        Raises:
            UsageError, DeviceError: as of ``Session.run``.
            DoesNotFit: a size needs more than the largest virtual card has.
        """
        # A single row takes paths of its own: dimensions of 1 are squeezed.
        rising = sorted({*sizes} - {1})
        if 1 in sizes:
            self._run(1)
        if len(rising) > 3 and self._probe(rising[0]) and self._probe(rising[-1]):
            self._between(rising)
        for size in rising:
            self._run(size)

    def _between(self, sizes: Sequence[int]) -> None:
        """Replay sizes between two others of which the requests are known, where that may be; all in rising order."""
        first, *inner, last = sizes
        lines = self._lines(first, last)
        left = [size for size in inner if size not in self.rows and not self._replay(lines, size)]
        if len(left) < 2:  # one has to be run to be sure of another
            return
        middle = math.sqrt(first * last)
        # Where there are lines, and they did not do, the size with the lowest evenness brings better ones.
        held_out = min(left, key=lambda size: (evenness(size) if lines else 0, abs(math.log(size / middle))))
        if self._probe(held_out):
            place = sizes.index(held_out)
            self._between(sizes[: place + 1])
            self._between(sizes[place:])

    def _lines(self, first: int, last: int) -> list[Lines]:
        """Lines through two sizes, by each of the others that confirms them: one outside of the two will do."""
        ends = self._requests[first], self._requests[last]
        others = [each for size, each in self._requests.items() if size not in (first, last)]
        return [lines for each in others if (lines := Lines.through(*ends, each)) is not None]

    def _run(self, size: int) -> None:
        """Run a size as a fresh process would."""
        if size not in self.rows:
            run = self.session.run(self.gpu, size, detailed=False)
            fits = not run.ran_out
            if not fits:
                run = enough(self.session, self.gpu, size, detailed=False)
            self._add(size, run.peak_allocated, run.peak_reserved, fits=fits)

    def _probe(self, size: int) -> bool:
        """Run a size, and keep what it asked for; whether the simulator serves that as it was served."""
        if size in self._requests:
            return True
        run = enough(self.session, self.gpu, size, detailed=True)
        if run.profile is None or not self._keep(size, run.profile.tape, run.peak_allocated, run.peak_reserved):
            return False
        if size not in self.rows:
            fits = self._has_room(run.peak_reserved, conf_of(run.profile.tape))
            if not fits:  # torch gives back what it has cached before it fails
                on_card = self.session.run(self.gpu, size, detailed=False)
                run, fits = (run if on_card.ran_out else on_card), not on_card.ran_out
            self._add(size, run.peak_allocated, run.peak_reserved, fits=fits)
        return True

    def _keep(self, size: int, tape: Tape, allocated: int, reserved: int) -> bool:
        """Keep what a size asked for, if the simulator serves it as it was served, and on a card of any size."""
        requests = requests_of(size, tape)
        if conf_of(tape).looks_at_capacity:
            return False
        peaks = replayed(requests.tape, allocator_of(tape))
        if (peaks.allocated, peaks.reserved) != (allocated, reserved):
            return False
        self._requests[size] = requests
        return True

    def _replay(self, lines: Sequence[Lines], size: int) -> bool:
        """Find out by lines what a size takes; whether they could tell."""
        # What is rounded up to a power of two is on a line, too, at multiples of it.
        able = (each for each in lines if each.evenness <= evenness(size))
        found = next(able, None)
        if found is None:
            return False
        rows = {self._served(tape, size) for tape in found.at(size)}
        if len(rows) > 1:
            return False
        [self.rows[size]] = rows
        return True

    def _served(self, tape: Tape, size: int) -> BatchSizeRow:
        conf = conf_of(tape)
        peaks, fits = replayed(tape, allocator_of(tape)), True
        if not self._has_room(peaks.reserved, conf):
            on_card = replayed(tape, allocator_of(tape, self.gpu.memory, context=self.gpu.context))
            peaks, fits = (on_card if on_card.fits else peaks), on_card.fits
        return self._row(size, peaks.allocated, peaks.reserved, fits=fits, was_run=False)

    def _has_room(self, reserved: int, conf: AllocatorConf) -> bool:
        """Whether the card has so much without giving anything back."""
        # The driver rounds a segment up to whole pages: where its size is set, more may be taken than is reserved.
        is_whole = conf.large_segment_size == AllocatorConf().large_segment_size
        return is_whole and reserved <= self.gpu.memory - self.gpu.context

    def _add(self, size: int, allocated: int, reserved: int, *, fits: bool) -> None:
        self.rows[size] = self._row(size, allocated, reserved, fits=fits, was_run=True)

    def _row(self, size: int, allocated: int, reserved: int, *, fits: bool, was_run: bool) -> BatchSizeRow:
        return BatchSizeRow(
            batch_size=size,
            peak_allocated=allocated,
            peak_reserved=reserved,
            used=reserved + self.gpu.context,
            capacity=self.gpu.memory,
            fits=fits,
            was_run=was_run,
        )
