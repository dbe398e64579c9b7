"""The report of a search for the batch size: the answer, the curve of memory against batch size, and every trial.
Knows results, and is plain ASCII for the same reason as the report of a profile; how a search goes it does not know.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import pairwise

from ..batch_size_result import BatchSizeResult, Trial
from ..sizes import format_size
from .text import WIDTH

_PLOT_WIDTH = 78
_PLOT_HEIGHT = 12
_AXIS = 12
_MOST_TRIALS = 16


def report(result: BatchSizeResult) -> str:
    """One screen of text about a result.

    Returns:
        Lines of at most 100 characters, without a newline at the end.
    """
    sections = [
        [_title(result)],
        list(_answer(result)),
        list(_plot(result)),
        list(_trials(result)),
        [line for note in result.notes for line in _wrapped(note, "Note: ")],
    ]
    return "\n\n".join("\n".join(section) for section in sections if section)


def _title(result: BatchSizeResult) -> str:
    device = f" on {result.device_name}" if result.device_name else ""
    line = f"vramkit: the largest batch{device}, {format_size(result.capacity)} to be had"
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..."


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
    return _wrapped(text, f"  {name:<15}{value:>13,}   ")


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
    for trial in result.trials[:_MOST_TRIALS]:
        took = f"{trial.seconds:.2f} s"
        yield (
            f"{trial.batch_size:15,}{_shown(trial.peak_allocated):>14}{_shown(trial.peak_reserved):>14}{took:>12}"
            f"  {_outcome(trial)}"
        )
    hidden = len(result.trials) - _MOST_TRIALS
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


def _wrapped(text: str, head: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)
