"""The search for the largest batch: predict, run there, correct where the run disagrees. Knows sizes, bytes and a
machine that runs them; knows neither torch nor what a step is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import VramkitError
from ..scaling.replays import Forecast, largest
from ..scaling.requests import Requests, two_for
from .bounds import MAX_SEARCHED_BATCH, Bounds, Ranks
from .trial import Trial

_TRUSTED = 1.1  # a forecast that missed a run by less than this factor may go anywhere from there
_STRIDE = 4  # and one that did not, so many times the largest size that fitted
_WIDER, _WIDEST = 64, 1 << 14  # where two sizes took the same: another one so many times larger, up to this
_SHARE = 8  # the held-out probe is this part of the first answer
_MAX_TRIALS = 24
_ENOUGH, _WORTH = 3, 0.01  # after so many trials beyond the probes, what gains no more than this part is left
_AGAIN, _MAX_AGAIN = 8, 32  # how far beyond the first border another one is looked for, and at how many sizes


@dataclass(frozen=True, kw_only=True)
class TrialRun:
    """What running one size came to."""

    trial: Trial
    requests: Requests | None = None
    """What it asked the allocator for; None: it ran out of memory, or not all was recorded."""


class Machine(Protocol):
    """Runs the steps at a batch size, as often as it is asked."""

    @property
    def runs_too_large(self) -> bool:
        """Whether a size that is forecast not to do is run all the same, where the answer hangs on it; False where it
        would run out of memory on a real device."""

    @property
    def capacity(self) -> int:
        """Bytes that the process can have; may shrink a little with the first runs, as the context grows."""

    def run(self, batch_size: int, *, is_probe: bool) -> TrialRun:
        """Run some steps at a batch size, and leave everything as it was.

        Running out of memory is an answer; everything else that goes wrong is raised.
        """


@dataclass(frozen=True, kw_only=True)
class Found:
    """The answer of a search."""

    batch_size: int
    """Keeps within the memory fraction; 0: not even the smallest that is allowed does."""
    max_batch_size: int
    """Fits at all; 0: not even the smallest that is allowed does."""
    grows: bool
    """Whether memory grows with the batch."""
    is_proven: bool
    """Each answer's next size was run and does not do, or a forecast that runs confirmed says so."""


@dataclass
class Search:
    """One search.

    A size is *good* for a limit if its steps run without an allocation that fails or has to be tried again, and reserve
    no more than the limit. It is assumed that what is good is so at every smaller size. That is wrong by a few sizes
    where segments happen to be reused better at a larger one; then the answer is one of several borders.
    """

    machine: Machine
    ranks: Ranks
    bounds: Bounds
    on_trial: Callable[[Trial], object] = lambda trial: None
    forecast: Forecast = field(default_factory=Forecast)
    runs: dict[int, TrialRun] = field(default_factory=dict)
    """By batch size, in the order in which they ran."""
    _good: dict[int, bool] = field(default_factory=dict)  # what all ranks agreed on: whether it fits at all
    _trust: bool = False  # the last run was as forecast
    _spent: int = 0  # trials beyond the probes
    _ceiling: int = 0

    def run(self) -> Found:
        """Search.

        Raises:
            UsageError: the bounds of the ranks don't go together.
        """
        self.bounds = self.bounds.agreed(self.ranks)
        unit, maximum = self.bounds.multiple_of, self.bounds.maximum
        self._ceiling = MAX_SEARCHED_BATCH // unit * unit if maximum is None else maximum
        self._probe()
        if not any(self._good.values()):
            return Found(batch_size=0, max_batch_size=0, grows=True, is_proven=True)
        grows = self._grows()
        if not grows and self.bounds.maximum is None:
            self._ceiling = max(self._good)  # no size would ever be too large
        within, is_proven = self._largest(self.bounds.memory_fraction)
        most_of_all, too = self._largest(1.0)
        return Found(
            batch_size=within,
            max_batch_size=most_of_all,
            grows=grows and not self._has_levelled(),
            is_proven=is_proven and too,
        )

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every size that was run, in that order."""
        return tuple(run.trial for run in self.runs.values())

    def expected(self, size: int) -> Trial:
        """What a size that was not run should take."""
        unit = self.bounds.multiple_of
        peaks, reserved = self.forecast.peaks(size), self._reserved_at(unit)(size // unit)
        return Trial(
            batch_size=size,
            fits=True,
            peak_allocated=peaks.allocated if peaks is not None else 0,
            peak_reserved=reserved or 0,
            kind="predicted",
        )

    # -- probes ----------------------------------------------------------------------------------------------------

    def _probe(self) -> None:
        """Run two small sizes, and a third, larger one to hold the line through them against."""
        unit, minimum = self.bounds.multiple_of, self.bounds.minimum
        # A single row takes paths of its own (batch norm refuses it, dimensions of 1 are squeezed), so it comes last.
        first = min(max(minimum, _round_up(2, unit)), self._ceiling)
        if not self._run(first, is_probe=True):
            if first > minimum:
                # What two rows can, up to where their memory ends, one may not: batch norm for one raises then.
                self._run(minimum, is_probe=True, may_fail=True)
            return
        second = min(_half_more(first, unit), self._ceiling)
        if second == first or not self._run(second, is_probe=True):
            return
        while not self._grows():
            # Small batches can hide below a peak that does not depend on them, such as the optimizer's.
            wider = min(_WIDER * second, self._ceiling)
            if self._is_constant() or wider <= second or wider > _WIDEST or not self._run(wider, is_probe=True):
                return
            second = wider
        rises = self.runs[second].trial.peak_allocated > self.runs[first].trial.peak_allocated
        stride = None if self._aligned(second) or not self.ranks.any(not rises) else _SHARE
        guess = self._guess(self.bounds.memory_fraction, second, self._ceiling + unit, stride=stride)
        third = min(max(_round_up(guess // _SHARE, unit), 2 * second), guess)
        if third == second or not self._run(third, is_probe=True):
            return
        if not self._trust or not self._aligned(third) or not self.bounds.verify:
            # Larger batches take other kernels than small ones: two sizes are needed that take the same.
            guess = self._guess(self.bounds.memory_fraction, third, self._ceiling + unit, stride=_SHARE)
            fourth = min(max(_round_up(guess // 2, unit), 2 * third), guess)
            if fourth > third:
                self._run(fourth, is_probe=True)

    # -- one limit -------------------------------------------------------------------------------------------------

    def _largest(self, fraction: float) -> tuple[int, bool]:
        """The largest size that is good for a part of the capacity, and whether the next one is known not to be."""
        unit = self.bounds.multiple_of
        minimum = self.bounds.minimum
        refuted, unproven = 0, 0
        for _ in range(_MAX_TRIALS):
            if self.bounds.maximum is None and self._has_levelled():
                self._ceiling = max(size for size in self._good if self._good[size])
            low, high = self._bracket(fraction)
            if high - low <= unit:
                break
            guess = self._guess(fraction, low, high, stride=_STRIDE if self.bounds.verify else None)
            if not self.bounds.verify:
                low = guess
                break
            if guess == low and self._is_forecast(low + unit):
                if self.machine.runs_too_large and low + unit >= min(self.runs):
                    self._run(low + unit)  # a library may take a smaller workspace there
                    continue
                break
            if guess == low:
                # Runs so far are all that speaks against the next size, and they follow no line: it has to say itself.
                if unproven or low + unit < min(self.runs):  # a single row may fail by itself
                    return (low if low >= minimum else 0), False
                guess, unproven = low + unit, unproven + 1
            if self._spent >= _ENOUGH and low >= minimum and guess - low <= low * _WORTH:
                return low, False
            if guess == high - unit and high in self._good:
                # The forecast believes in a size that did not do: down from there in longer and longer strides.
                stride = unit * max(1, (high - low) // unit // 64) * 4**refuted
                guess = max(high - stride, low + _round_up((high - low) // 2, unit))
                refuted += 1
            self._run(min(guess, high - unit))
        else:
            return self._bracket(fraction)[0], False
        return (low if low >= minimum else 0), True

    def _bracket(self, fraction: float) -> tuple[int, int]:
        """The largest size known to be good for a fraction, and the next known not to be, or not allowed."""
        good = {size for size in self._good if self._within(size, fraction)}
        unit = self.bounds.multiple_of
        low = max(good, default=self.bounds.minimum - unit)
        high = min((size for size in self._good if size > low), default=self._ceiling + unit)
        return low, min(high, self._ceiling + unit)

    def _within(self, size: int, fraction: float) -> bool:
        reserved = self.runs[size].trial.peak_reserved
        return self._good[size] and (fraction == 1 or not self.ranks.any(reserved > self._limit(fraction)))

    def _limit(self, fraction: float) -> int:
        return int(self.machine.capacity * fraction)

    def _guess(self, fraction: float, low: int, high: int, *, stride: int | None = _STRIDE) -> int:
        """The largest size below ``high`` that should be good; ``low`` if none above it is.

        Args:
            fraction: of the capacity.
            low: is good.
            high: is not, or not allowed.
            stride: how many times the largest size that fitted it may be, if the last run was not as forecast; None:
                any number.
        """
        unit = self.bounds.multiple_of
        if stride is not None and not self._trust:
            fitting = max(size for size in self._good if self._good[size])
            high = min(high, max(stride * fitting, low + unit) + unit)
        reserved, limit = self._reserved_at(unit), self._limit(fraction)
        units = largest(reserved, limit, low // unit, high // unit)
        # What is reserved does not always grow: where segments are reused better, a larger size may do again.
        last = min(units + max(_AGAIN, units * 2 // 100), high // unit - 1)
        for again in range(last, units, -max(1, (last - units) // _MAX_AGAIN)):
            value = reserved(again)
            if value is not None and value <= limit:
                units = again
                break
        return self.ranks.smallest(units * unit)

    def _reserved_at(self, unit: int) -> Callable[[int], int | None]:
        """What a number of units reserves, as the forecast has it and the nearest run corrects it."""
        fitted = {size: run.trial for size, run in self.runs.items() if self._good[size]}

        def reserved(units: int) -> int | None:
            size = units * unit
            near = min(fitted, key=lambda each: abs(each - size))
            peaks, at_run = self.forecast.peaks(size), self.forecast.peaks(near)
            if peaks is None or at_run is None:
                # What is allocated grows more evenly than what is reserved for it.
                allocated = self._allocated_at(size) or fitted[near].peak_allocated * size // near
                return allocated * fitted[near].peak_reserved // max(fitted[near].peak_allocated, 1)
            return peaks.reserved + fitted[near].peak_reserved - at_run.reserved if peaks.in_order else None

        return reserved

    def _allocated_at(self, size: int) -> int | None:
        """What a size should allocate; None: fewer than two sizes are known to tell by."""
        peaks = self.forecast.peaks(size)
        fitted = {each: run.trial.peak_allocated for each, run in self.runs.items() if self._good[each]}
        if peaks is None and len(fitted) > 1:
            return _on_line(fitted, size)
        return None if peaks is None else peaks.allocated

    # -- one run ---------------------------------------------------------------------------------------------------

    def _run(self, size: int, *, is_probe: bool = False, may_fail: bool = False) -> bool:
        """Run a size on all ranks; whether it fits on every one.

        Args:
            size: it.
            is_probe: it is not to be an answer.
            may_fail: what the step raises is left, and the size as well; it does not fit then.
        """
        expected = self._allocated_at(size)
        self._spent += not is_probe

        def attempt() -> TrialRun | None:
            try:
                run = self.machine.run(size, is_probe=is_probe)
            except Exception as error:
                # What the step raised is the error or its cause; one of vramkit's own has none.
                if not may_fail or (isinstance(error, VramkitError) and error.__cause__ is None):
                    raise
                return None
            self.on_trial(run.trial)
            return run

        run = self.ranks.together(attempt)
        if self.ranks.any(run is None) or run is None:
            return False
        self.runs[size] = run
        self.forecast.capacity = self.machine.capacity
        fits = self._good[size] = not self.ranks.any(not run.trial.fits)
        if run.requests is not None:
            self.forecast.add(run.requests)
        self._trust = not self.ranks.any(not (fits and _as_expected(expected, run.trial.peak_allocated)))
        return fits

    def _is_forecast(self, size: int) -> bool:
        """Whether what a size takes is more than a guess by what others took; on every rank."""
        return not self.ranks.any(self.forecast.peaks(size) is None)

    def _aligned(self, size: int) -> bool:
        """Whether a run's requests are those of another run, but for their sizes; on every rank."""
        requests = self.runs[size].requests
        family = None if requests is None else self.forecast.families.of(requests)
        return not self.ranks.any(family is None or len(family.members) < 2)

    def _is_constant(self) -> bool:
        """Whether every request is known not to depend on the batch; on every rank."""
        family = self.forecast.families.nearest(max(self.runs))
        return not self.ranks.any(family is None or family.grows)

    def _has_levelled(self) -> bool:
        """Whether the two largest sizes that fit, far from each other, took the same, by requests of their own."""
        fitted = sorted(size for size in self._good if self._good[size])
        if len(fitted) < 2 or fitted[-1] < _STRIDE * fitted[-2]:
            return False
        one, other = (self.runs[size].trial.peak_allocated for size in fitted[-2:])
        return not self._aligned(fitted[-1]) and not self.ranks.any(one != other)

    def _grows(self) -> bool:
        known = [run.trial.peak_allocated for run in self.runs.values() if run.trial.fits]
        family = self.forecast.families.nearest(max(self.runs))
        grows = family.grows if family is not None else len(known) < 2 or max(known) > min(known)
        return self.ranks.any(grows)


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _half_more(size: int, unit: int) -> int:
    return size + max(unit, size // 2 // unit * unit)


def _as_expected(expected: int | None, found: int) -> bool:
    return expected is not None and max(expected, found) <= min(expected, found) * _TRUSTED


def _on_line(points: dict[int, int], size: int) -> int:
    """Where the line through two points near to a size has it."""
    first, second = two_for(size, [*points])
    return points[first] + (points[second] - points[first]) * (size - first) // (second - first)
