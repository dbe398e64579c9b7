"""``vramkit.compare``, and what it returns. Knows which rows there are; how they are found is the other files'."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import UsageError, shown
from ..reports.moment import moment_of
from ..sizes import parse_size
from ..tape.breakdown import Breakdown
from ..tape.events import ALLOCATION, EVENT, Tape
from ..tape.memory import MemoryResult
from .modules import changed_modules, rest_of
from .pair import Pair
from .reasons import reasons, signed
from .rows import Difference, ModuleDifference, StepDifference, TensorDifference
from .tensors import changed_lines, changed_tensors
from .text import report

_MODULES = 8


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Comparison:
    """Two results of one device: what grew, what shrank, and why, as far as the recordings prove it.

    ::

        comparison = vramkit.compare(vramkit.load("before.npz"), profile)
        print(comparison)
        assert not comparison.exceeds("2%")

    Every figure of a category, module, tensor or line is of the moment at which each result's allocated memory was
    highest. Known limitations: these two moments can be in different phases, and then other things are alive; the
    sentences say so. A module or tensor that was renamed is one that went and one that came.
    """

    before: MemoryResult
    after: MemoryResult
    others: tuple[Comparison, ...] = ()
    """Of the other devices."""

    @property
    def device(self) -> str:
        """The device, in torch's words; of two that are called differently, both."""
        names = dict.fromkeys((self.before.device, self.after.device))
        return " and ".join(names)

    def each_device(self) -> Iterator[Comparison]:
        """This comparison and those of the other devices."""
        yield self
        yield from self.others

    @property
    def peak_allocated(self) -> Difference:
        """Highest ``memory_allocated()``."""
        return _difference("peak_allocated", self.before.peak_allocated, self.after.peak_allocated)

    @property
    def peak_reserved(self) -> Difference:
        """Highest ``memory_reserved()``."""
        return _difference("peak_reserved", self.before.peak_reserved, self.after.peak_reserved)

    @cached_property
    def categories(self) -> tuple[Difference, ...]:
        """Each part of the `Breakdown` at the peak, by its name there, the unchanged ones too."""
        before, after = self.before.peak, self.after.peak
        names = [each.name for each in fields(Breakdown)]
        return tuple(_difference(name, getattr(before, name), getattr(after, name)) for name in names)

    @cached_property
    def modules(self) -> tuple[ModuleDifference, ...]:
        """The modules in which most came or went, most changed first; each byte in one row.

        The last row, without a name, is what belongs to no module or to a smaller one. The rows' differences sum to
        that of all categories.
        """
        rows = [row for _, row in changed_modules(self._pair, _MODULES)]
        rest = rest_of(self._pair, rows)
        return (*rows, rest) if any(each.before or each.after for each in rest.parts) else tuple(rows)

    @cached_property
    def steps(self) -> tuple[StepDifference, ...]:
        """The training steps that both have."""
        before = {step.step: step for step in self.before.steps}
        return tuple(
            StepDifference(
                step=step.step,
                **{
                    name: _difference(name, getattr(before[step.step], name), getattr(step, name))
                    for name in ("peak_allocated", "peak_reserved", "end_allocated")
                },
            )
            for step in self.after.steps
            if step.step in before
        )

    @cached_property
    def lines(self) -> tuple[Difference, ...]:
        """Lines of source that hold more or less, the largest change first; empty where the recordings have none."""
        return tuple(changed_lines(self._pair))

    @cached_property
    def tensors(self) -> tuple[TensorDifference, ...]:
        """Allocations that came, went, or have another size, equal ones as one; the largest change first."""
        return tuple(changed_tensors(self._pair))

    @cached_property
    def reasons(self) -> tuple[str, ...]:
        """Why, in sentences: what both recordings prove, and no guess."""
        return tuple(reasons(self._pair))

    def exceeds(self, limit: str | int) -> bool:
        """Whether a device's peak grew by more than a limit: that of allocated memory, or that of reserved.

        Allocated memory is what the program asked for, and the same in each run; reserved memory is what decides
        whether it fits. A run that now ends for lack of memory, and did not before, exceeds any limit.

        Args:
            limit: ``"2%"`` of the figure before, or a size: ``"100 MiB"``, or bytes.

        Raises:
            UsageError: it is neither.
        """
        for each in self.each_device():
            if moment_of(each.after).failed and not moment_of(each.before).failed:
                return True
            if is_over(each.peak_allocated, limit) or is_over(each.peak_reserved, limit):
                return True
        return False

    def report(self) -> str:
        """One screen of text."""
        return report(self)

    def to_dict(self) -> dict[str, Any]:
        """Every row and sentence, of each device, as JSON can carry them; ``docs/compare.md`` says what it has."""
        return {"devices": [_document(each) for each in self.each_device()]}

    @cached_property
    def _pair(self) -> Pair:
        return Pair(self.before, self.after)

    def __str__(self) -> str:
        return self.report()

    def __repr__(self) -> str:
        allocated, reserved = (signed(each.difference) for each in (self.peak_allocated, self.peak_reserved))
        return f"Comparison({self.device}: peak allocated {allocated}, reserved {reserved})"


def is_over(figure: Difference, limit: str | int) -> bool:
    """Whether a figure grew by more than a limit, as of ``Comparison.exceeds``.

    Raises:
        UsageError: the limit is neither a part nor a size.
    """
    percent = _percent(limit)
    most = parse_size(limit) if percent is None else figure.before * percent / 100
    return figure.difference > most


def compare(before: MemoryResult, after: MemoryResult) -> Comparison:
    """Compare two results: profiles, estimates, snapshots of torch's, also of different versions of torch.

    ::

        print(vramkit.compare(vramkit.load("before.npz"), vramkit.load("after.npz")))

    Modules, tensors and lines of source are matched by name. What wraps a model to compile or to distribute it does not
    matter, nor what the model is called if each result has one.

    Args:
        before: the earlier one; `vramkit.load` and `vramkit.open_snapshot` open files.
        after: the later one.

    Returns:
        The comparison of the fullest device, with those of the others in it. Devices are matched by name; where each
        result has one, these are compared whatever they are called. One that only one result used is compared with
        nothing.

    Raises:
        UsageError: one of the two is no result.
    """
    for word, given in (("before", before), ("after", after)):
        if not isinstance(given, MemoryResult):
            raise UsageError(
                "Two results were to be compared",
                f"{shown(given)} was given as {word}",
                "It is no profile and no estimate",
                "Open a file with vramkit.load(path), or vramkit.open_snapshot(path)",
            )
    first, *others = sorted(
        _pairs(before, after), key=lambda each: -max(each.peak_reserved.before, each.peak_reserved.after)
    )
    return replace(first, others=tuple(others))


def _pairs(before: MemoryResult, after: MemoryResult) -> Iterator[Comparison]:
    left, right = ({one.device: one for one in result.each_device()} for result in (before, after))
    if len(left) == len(right) == 1:
        yield Comparison(before=before, after=after)
        return
    for device in dict.fromkeys([*left, *right]):
        yield Comparison(before=left.get(device) or _unused(device), after=right.get(device) or _unused(device))


def _unused(device: str) -> MemoryResult:
    return MemoryResult(tape=Tape(events=np.zeros(0, EVENT), allocations=np.zeros(0, ALLOCATION), device=device))


def _difference(name: str, before: int, after: int) -> Difference:
    return Difference(name=name, before=before, after=after)


def _document(comparison: Comparison) -> dict[str, Any]:
    knows = comparison.before.tape.knows_phases and comparison.after.tape.knows_phases
    return {
        "device": comparison.device,
        "peak_allocated": _plain(comparison.peak_allocated),
        "peak_reserved": _plain(comparison.peak_reserved),
        "categories": [_plain(row) for row in comparison.categories],
        "modules": [{**_plain(row), "parts": [_plain(part) for part in row.parts]} for row in comparison.modules],
        "steps": [
            {"step": row.step, **{each.name: _plain(each) for each in _figures(row)}} for row in comparison.steps
        ],
        "lines": [_plain(row) for row in comparison.lines],
        "tensors": [
            {**_plain(row), "category": row.category.name, "phase": row.phase.name if knows or row.phase else None}
            for row in comparison.tensors
        ],
        "reasons": list(comparison.reasons),
    }


def _plain(row: Difference | ModuleDifference | TensorDifference) -> dict[str, Any]:
    return {**asdict(row), "before": row.before, "after": row.after, "difference": row.difference}


def _figures(row: StepDifference) -> tuple[Difference, ...]:
    return row.peak_allocated, row.peak_reserved, row.end_allocated


def _percent(limit: str | int) -> float | None:
    """The number before a percent sign; None: there is no such sign."""
    if not isinstance(limit, str) or not limit.rstrip().endswith("%"):
        return None
    number = limit.rstrip()[:-1].strip()
    if not re.fullmatch(r"\d{1,6}(\.\d{1,6})?", number, re.ASCII):
        raise UsageError(
            "A limit was expected, by how much memory may grow",
            f"got {shown(limit)}",
            instead="Write a part such as '2%', or a size such as '100 MiB'",
        )
    return float(number)
