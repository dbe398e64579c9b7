"""The largest batch with which a program runs to its end on a card: foreseen, then run. Knows sessions of an estimate
and tapes; no torch.
"""

from __future__ import annotations

from ..engines import Session
from ..errors import DoesNotFit
from ..gpus import GPU
from ..tape.events import Tape
from .replays import allocator_of, largest, replayed
from .requests import Families, requests_of

MAX_PREDICTED_BATCH = 1 << 24
"""No larger batch is tried: a program whose memory does not grow with its batch would never stop fitting."""

_ENOUGH = 3  # runs whose requests are looked at


class Largest:
    """A search for the largest batch that fits: one that was seen to fit, where the next was seen not to.

    It assumes that what fits does so at every smaller size. That is wrong where a smaller batch chooses a kernel with a
    larger workspace, and then the answer is one of several. Which sizes are tried, replays say, where requests lie on
    lines, else the line through what was reserved; where that is wrong, it only costs runs.
    """

    def __init__(self, session: Session, gpu: GPU) -> None:
        self._session = session
        self._gpu = gpu
        self._families = Families()
        self._reserved: dict[int, int] = {}  # batch size -> peak reserved bytes, of those that fit
        self._low = 0  # this fits, or is 0
        self._high = MAX_PREDICTED_BATCH + 1  # this does not, or is not allowed
        self._foreseen = False  # the last run asked for what the ones before it had said

    def know(self, size: int, tape: Tape) -> None:
        """Take in a size that ran to its end on the card."""
        self._low = max(self._low, size)
        self._reserved[size] = tape.peak_reserved
        requests = requests_of(size, tape)
        family = self._families.nearest(size)
        self._foreseen = family is not None and requests.asks_as(family.at(size))
        self._families.add(requests)

    def run(self, start: int) -> int:
        """Search from a size that may or may not fit, and return the largest that does.

        Raises:
            DoesNotFit: not even one row does.
            UsageError, DeviceError: as of ``Session.run``.
        """
        fits = start in self._reserved or self._try(start)
        size = start
        while self._high > 1 and self._low < MAX_PREDICTED_BATCH:
            guess = self._guess()
            # Large strides until a run was as foreseen, or the line through two sizes says that the end is near: sizes
            # close to each other tell nothing, because segments are of 2 MiB and more.
            is_between = self._low and self._high <= MAX_PREDICTED_BATCH
            is_told = self._foreseen or len(self._reserved) > 1
            if is_told and (is_between or (fits and (self._foreseen or guess <= 4 * size))):
                self._close_in(guess)
                break
            if is_between:
                # A second size, to have a line; one is not like others, and half of what fits does so.
                size = self._low // 2 if self._low > 3 else (self._low + self._high) // 2
            else:
                size = min(4 * size, MAX_PREDICTED_BATCH) if fits else max(1, size // 4)
            if size == self._low:
                break
            fits = self._try(size)
        if not self._low:
            raise DoesNotFit(
                f"The largest batch that fits {self._gpu} was asked for",
                "one row runs out of memory",
                instead="Choose a larger card, or make the model or a row smaller",
            )
        return self._low

    def _close_in(self, guess: int) -> None:
        """From a guess one step, then in longer and longer strides, to the other side of the end; then in halves."""
        if self._high - self._low < 2:
            return
        guess = min(max(guess, self._low + 1), self._high - 1)
        # Segments of 2 MiB and more let a line through small batches miss the end of large ones by about a thousandth.
        stride, longer = 1, max(2, guess >> 11)
        if self._try(guess):
            while self._low + stride < self._high and self._try(self._low + stride):
                stride, longer = longer, 2 * longer
        else:
            while self._high - stride > self._low and not self._try(self._high - stride):
                stride, longer = longer, 2 * longer
        while self._high - self._low > 1:
            self._try((self._low + self._high) // 2)

    def _try(self, size: int) -> bool:
        run = self._session.run(self._gpu, size, detailed=len(self._reserved) < _ENOUGH)
        if run.ran_out:
            self._high = size
            return False
        if run.profile is not None:
            self.know(size, run.profile.tape)
        else:
            self._low = size
            self._reserved[size] = run.peak_reserved
        return True

    def _guess(self) -> int:
        """The largest size that should fit, between those that do and those that don't."""
        family = self._families.nearest(self._low)
        if family is not None and family.grows:

            def reserved(size: int) -> int | None:
                tape = family.at(size)
                peaks = replayed(tape, allocator_of(tape, self._gpu.memory, context=self._gpu.context))
                return peaks.reserved if peaks.fits else None

            return largest(reserved, self._gpu.memory, self._low, self._high)
        if len(self._reserved) < 2:
            return (self._low + self._high) // 2
        # Where the line through the two largest sizes that fit reaches the card's memory.
        (first, lower), (second, upper) = sorted(self._reserved.items())[-2:]
        slope = (upper - lower) / (second - first)
        room = self._gpu.memory - self._gpu.context - upper
        return MAX_PREDICTED_BATCH if slope <= 0 else min(MAX_PREDICTED_BATCH, second + int(room / slope))
