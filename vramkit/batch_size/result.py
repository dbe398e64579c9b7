"""``BatchSizeResult``: what a search for the batch size comes to, every trial with it, and its report. Knows figures;
knows neither torch nor how the search went about it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from ..reports.layout import cut, note, sections, wrapped
from ..sizes import format_size
from .trial import Accumulation, Trial, accumulate

_PLOT_WIDTH = 78
_PLOT_HEIGHT = 12
_AXIS = 12
_MAX_TRIALS = 16


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BatchSizeResult:
    """The largest batch that fits: what ``vramkit.auto_batch_size`` returns.

    ::

        found = vramkit.auto_batch_size(model, batch, optimizer=optimizer, step=train_step)
        loader = DataLoader(dataset, batch_size=int(found))
        print(found)

    Known limitations: it holds for the memory that was free when it was found; another process that takes some later
    makes it too large. What runs beside the step (an evaluation, a second model) is not in it.
    """

    batch_size: int
    """The largest that keeps the peak of reserved memory within ``memory_fraction`` of the capacity."""
    max_batch_size: int
    """The largest that fits at all."""
    peak_reserved: int
    """Highest ``memory_reserved()`` at ``batch_size``, as a fresh process would have it, bytes."""
    capacity: int
    """Bytes that this process can have: free on the device, and what its allocator holds already."""
    memory_fraction: float
    """How much of the capacity ``batch_size`` may use, above 0 and at most 1."""
    trials: tuple[Trial, ...]
    """Every size that was looked at, in that order; a longer run of one of them, to look for a leak, is not listed."""
    effective_batch_size: int | None = None
    """Rows that shall count for one optimizer step; None: nobody asked."""
    device_name: str = ""
    """What the device calls itself; empty: not known."""
    curve: tuple[tuple[int, int], ...] = ()
    """Peak reserved memory, bytes, predicted for further batch sizes: ``(batch_size, peak_reserved)``."""
    notes: tuple[str, ...] = ()
    """What could not be known, or should be, in sentences."""

    @property
    def limit(self) -> int:
        """Bytes within which ``batch_size`` keeps."""
        return int(self.capacity * self.memory_fraction)

    @property
    def accumulation(self) -> Accumulation | None:
        """How the effective batch is made of batches that fit; None: no effective batch size was given."""
        if self.effective_batch_size is None:
            return None
        return accumulate(self.effective_batch_size, self.batch_size)

    @property
    def accumulation_steps(self) -> int | None:
        """Forward and backward passes for each optimizer step, so that their rows are ``effective_batch_size``.

        ``accumulation_steps * batch_size`` is that, where it divides; else the last of them is smaller, and
        ``accumulation`` says by how much. None: no effective batch size was given.
        """
        made_of = self.accumulation
        return None if made_of is None else made_of.steps

    @property
    def verified(self) -> bool:
        """Whether ``batch_size`` and ``max_batch_size`` were run on the device, and not only predicted."""
        ran = {trial.batch_size for trial in self.trials if trial.kind == "measured" and trial.fits}
        return {self.batch_size, self.max_batch_size} <= ran

    def __int__(self) -> int:
        return self.batch_size

    def __index__(self) -> int:
        return self.batch_size

    def report(self) -> str:
        """One screen of text: the answer, what it means, the curve of memory against batch size, and the trials."""
        return sections(
            [
                [_title(self)],
                list(_answer(self)),
                list(_plot(self)),
                list(_trials(self)),
                [line for each in self.notes for line in note(each)],
            ]
        )

    def __str__(self) -> str:
        return self.report()

    def __repr__(self) -> str:
        share = f"{self.memory_fraction:.4g} of {format_size(self.capacity)}"
        return (
            f"{type(self).__name__}({self.batch_size} within {share}, at most {self.max_batch_size}; "
            f"reserved {format_size(self.peak_reserved)}, {len(self.trials)} trials)"
        )


# -- the report: plain ASCII, as a profile's -------------------------------------------------------------------------


def _title(result: BatchSizeResult) -> str:
    device = f" on {result.device_name}" if result.device_name else ""
    line = f"vramkit: the largest batch{device}, {format_size(result.capacity)} available"
    return cut(line)


def _answer(result: BatchSizeResult) -> Iterator[str]:
    known = "measured" if result.verified else "predicted"
    share = f"{result.memory_fraction:.4g} of that ({format_size(result.limit)})"
    text = f"reserves {format_size(result.peak_reserved)}, within {share}; {known}"
    yield from _row("batch_size", result.batch_size, text)
    yield from _row("max_batch_size", result.max_batch_size, "is the largest that fits at all")
    made_of = result.accumulation
    if made_of is None:
        return
    size, steps, rest = made_of.batch_size, made_of.steps, made_of.remainder
    if rest:
        sums = f"{steps - 1:,} x {size:,} and one of {rest:,}, for {made_of.effective_batch_size:,}"
        even = made_of.even_batch_size
        text = f"{sums}; or {made_of.even_steps:,} x {even:,}, which is even" if even > 1 else f"{sums}; none is even"
    else:
        text = f"{steps:,} x {size:,} = {made_of.effective_batch_size:,}"
    yield from _row("accumulate", steps, text)


def _row(name: str, value: int, text: str) -> list[str]:
    return wrapped(text, f"  {name:<15}{value:>13,}   ")


# -- the curve ---------------------------------------------------------------------------------------------------------


def _plot(result: BatchSizeResult) -> Iterator[str]:
    points = dict(result.curve)
    points |= {trial.batch_size: trial.peak_reserved for trial in result.trials if trial.fits}
    if len(points) < 2:
        return
    right = _right_end(result)
    top = max(result.capacity, 1)
    rows = [[" "] * _PLOT_WIDTH for _ in range(_PLOT_HEIGHT)]
    limit_row = _height(result.limit, top)
    rows[limit_row] = ["-"] * _PLOT_WIDTH
    rows[0] = ["="] * _PLOT_WIDTH
    for column in range(_PLOT_WIDTH):
        size = _interpolated(sorted(points.items()), column * right / (_PLOT_WIDTH - 1))
        if size is not None and size <= top:
            rows[_height(size, top)][column] = "."
    for trial in sorted(result.trials, key=_importance):
        if trial.batch_size <= right:
            column = round(trial.batch_size / right * (_PLOT_WIDTH - 1))
            rows[0 if not trial.fits else _height(trial.peak_reserved, top)][column] = _sign(trial)
    yield "Peak reserved memory by batch size (* measured, o predicted, x does not fit, . between them):"
    for number, row in enumerate(rows):
        label = format_size(top) if number == 0 else format_size(result.limit) if number == limit_row else ""
        yield f"{label:>{_AXIS}} |{''.join(row)}".rstrip()
    yield f"{'0 B':>{_AXIS}} +{'-' * _PLOT_WIDTH}"
    middle, end = f"{right // 2:,}", f"{right:,}"
    gap = _PLOT_WIDTH - 1 - len(end)
    yield f"{'':{_AXIS}}  0{middle:^{gap}}{end}".rstrip()


def _right_end(result: BatchSizeResult) -> int:
    """The largest size that is drawn: one far above what fits would leave no room for the others."""
    near = [trial.batch_size for trial in result.trials if trial.batch_size <= 1.25 * result.max_batch_size]
    return max([result.max_batch_size, *near])


def _height(size: int, top: int) -> int:
    return _PLOT_HEIGHT - 1 - round(min(size, top) / top * (_PLOT_HEIGHT - 1))


def _interpolated(points: list[tuple[int, int]], at: float) -> int | None:
    for (left, low), (right, high) in pairwise(points):
        if left <= at <= right:
            return round(low + (high - low) * (at - left) / (right - left))
    return None


def _importance(trial: Trial) -> tuple[bool, bool]:
    return (trial.kind == "measured", trial.fits)


def _sign(trial: Trial) -> str:
    if not trial.fits:
        return "x"
    return "*" if trial.kind == "measured" else "o"


# -- the trials --------------------------------------------------------------------------------------------------------


def _trials(result: BatchSizeResult) -> Iterator[str]:
    if not result.trials:
        return
    yield "Trials:"
    yield f"{'batch':>15}{'allocated':>14}{'reserved':>14}{'took':>12}"
    for trial in result.trials[:_MAX_TRIALS]:
        took = f"{trial.seconds:.2f} s"
        yield (
            f"{trial.batch_size:15,}{_shown(trial.peak_allocated):>14}{_shown(trial.peak_reserved):>14}{took:>12}"
            f"  {_outcome(trial)}"
        )
    hidden = len(result.trials) - _MAX_TRIALS
    if hidden > 0:
        yield f"  and {hidden:,} more, in .trials"


def _shown(size: int) -> str:
    return format_size(size) if size else "-"


def _outcome(trial: Trial) -> str:
    role = "probe" if trial.is_probe else trial.kind
    if trial.ran_out:
        return f"{role}: ran out of memory"
    if trial.retries:
        times = "once" if trial.retries == 1 else f"{trial.retries:,} times"
        return f"{role}: emptied the cache {times} on its way, too large"
    return role if trial.fits else f"{role}: does not fit"
