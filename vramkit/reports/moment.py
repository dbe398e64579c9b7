"""The moment that a report is about, and what was alive then. Knows tapes and results; formats nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..tape.breakdown import Breakdown
from ..tape.events import Action, Category, Ints, Phase, Table, Tape
from ..tape.memory import MemoryResult, OutOfMemory
from ..tape.owners import owners
from .tree import starred_names


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The peak; or, if an allocation failed and that ended the training, that: then it needs explaining."""

    event: int
    """Index of the event after which it is; -1: before the first one."""
    breakdown: Breakdown
    alive: npt.NDArray[np.bool_]
    """Which rows of ``Tape.allocations`` are alive; shape ``(allocations,)``."""
    step: int
    """Training step, from 0."""
    phase: Phase
    module: str
    """Name of the module that was running; empty: none."""
    failed: OutOfMemory | None = None
    """The allocation that failed and ended it; None: this is the peak."""
    recovered: tuple[OutOfMemory, ...] = ()
    """Allocations that failed, after which the program went on."""


def moment_of(result: MemoryResult) -> Moment:
    """The last allocation of a result that failed, if the training ended there; else the peak."""
    tape = result.tape
    failures = result.out_of_memory
    failed = failures[-1] if failures and not work_after(tape, failures[-1].event).any() else None
    event = failed.event if failed else tape.peak_event
    row = tape.events[event] if event >= 0 else None
    module = int(row["module"]) if row is not None else -1
    return Moment(
        event=event,
        breakdown=failed.breakdown if failed else result.peak,
        alive=tape.alive_at(event),
        step=int(row["step"]) if row is not None else 0,
        phase=phase_at(tape, event),
        module=tape.modules[module].name if module >= 0 else "",
        failed=failed,
        recovered=() if failed else failures,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Where a part of a program reached its most."""

    event: int
    """Index of the event after which it was."""
    allocated: int
    """``memory_allocated()`` then, in bytes."""
    phase: Phase
    module: str
    """Name of the module that was running; empty: none."""


def peaks_of(result: MemoryResult) -> tuple[Peak | None, Peak | None]:
    """Where training and where evaluation reached most; None: there was none of it."""
    phase = result.tape.events["phase"]
    evaluates = phase == Phase.EVALUATION
    return _peak(result.tape, ~evaluates & (phase != Phase.OUTSIDE)), _peak(result.tape, evaluates)


def _peak(tape: Tape, chosen: npt.NDArray[np.bool_]) -> Peak | None:
    if not chosen.any():
        return None
    event = int(np.where(chosen, tape.allocated, -1).argmax())
    row = tape.events[event]
    module = int(row["module"])
    return Peak(
        event=event,
        allocated=int(tape.allocated[event]),
        phase=Phase(int(row["phase"])),
        module=tape.modules[module].name if module >= 0 else "",
    )


def phase_at(tape: Tape, event: int) -> Phase:
    """Where the program was: where nobody looked, as the frames of what was allocated then say."""
    if event < 0:
        return Phase.OUTSIDE
    row = tape.events[event]
    if tape.knows_phases or row["allocation"] < 0:
        return Phase(int(row["phase"]))
    return Phase(int(tape.allocations["phase"][row["allocation"]]))


def work_after(tape: Tape, event: int) -> npt.NDArray[np.bool_]:
    """Which of the later events a model or an optimizer made: an exception on its way out only frees.

    Where nobody looked for phases, it is as the frames say; where they say nothing either, every allocation.
    """
    later = tape.events[event + 1 :]
    phase = later["phase"]
    if not tape.knows_phases:
        of_allocations = np.append(tape.allocations["phase"], np.uint8(Phase.OUTSIDE))
        phase = of_allocations[later["allocation"]] if of_allocations.any() else np.uint8(Phase.FORWARD)
    works: npt.NDArray[np.bool_] = (later["action"] == Action.ALLOC) & (phase != Phase.OUTSIDE)
    return works


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """Allocations of one size, one category and one origin."""

    count: int
    size: int
    """Bytes of each, as asked for."""
    category: Category
    phase: Phase
    """Where they were made."""
    names: tuple[str, ...]
    """What they are called, as far as they have names; else the modules that made them. Each once."""
    named: bool
    """Whether ``names`` are their own."""
    lines: tuple[str, ...] = ()
    """The lines that made them, ``"train.py:42 in forward"``, as far as they are known. Each once."""
    operators: tuple[str, ...] = ()
    """The operators that made them, ``"aten::mm (MmBackward0)"``, as far as they are known. Each once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineUsage:
    """What one line of the program made that was alive at a moment."""

    line: str
    """``"train.py:42 in forward"``; empty: what is of no known line, or of one with less."""
    count: int
    size: int
    """Bytes of all, as asked for."""
    largest: Category | None
    """Of which most of it is; None where there is no line."""


def largest_lines(result: MemoryResult, moment: Moment, limit: int = 5) -> list[LineUsage]:
    """The lines that made most of what was alive, most first, and at last the rest; none where nobody looked.

    Args:
        result: of which the moment is.
        moment: when.
        limit: how many lines, at most.
    """
    stacks = result.tape.stacks
    if stacks is None:
        return []
    table, lines = result.tape.allocations[moment.alive], stacks.lines[moment.alive]
    sums = np.zeros((len(stacks.frames) + 1, len(Category)), np.int64)
    np.add.at(sums, (lines, table["category"]), table["requested"])
    counts = np.bincount(lines + 1, minlength=len(sums))
    total = sums.sum(axis=1)
    order = [line for line in np.argsort(-total[:-1], kind="stable").tolist() if total[line]][:limit]
    found = [
        LineUsage(
            line=stacks.texts[line],
            count=int(counts[line + 1]),
            size=int(total[line]),
            largest=Category(int(sums[line].argmax())),
        )
        for line in order
    ]
    count, size = (
        int(every.sum()) - sum(part)
        for every, part in ((counts, [e.count for e in found]), (total, [e.size for e in found]))
    )
    return found + [LineUsage(line="", count=count, size=size, largest=None)] * bool(found and size)


def largest_tensors(result: MemoryResult, moment: Moment, limit: int = 5) -> list[Tensors]:
    """The largest allocations that were alive, equal ones as one, largest first.

    Args:
        result: of which the moment is.
        moment: when.
        limit: how many groups, at most.
    """
    tape = result.tape
    table = tape.allocations[moment.alive]
    owner = owners(tape)[moment.alive]
    order = np.argsort(-table["requested"], kind="stable")
    groups: dict[tuple[int, int, int, bool], list[int]] = {}
    for i in order.tolist():
        row = table[i]
        key = (int(row["requested"]), int(row["category"]), int(row["phase"]), bool(row["module"] < 0))
        if key not in groups and len(groups) == limit:
            if key[0] < min(size for size, *_ in groups):
                break  # sorted by size: no group can grow any more
            continue
        groups.setdefault(key, []).append(i)
    starred = starred_names(tape.modules)
    alive, lines, made_by = np.flatnonzero(moment.alive), tape.lines, tape.made_by
    found = []
    for (size, category, phase, _), rows in groups.items():
        names, which = _names(result, table[rows], owner[rows], starred), alive[rows].tolist()
        found.append(
            Tensors(
                count=len(rows),
                size=size,
                category=Category(category),
                phase=Phase(phase),
                names=names,
                named=bool(names) and bool((table["name"][rows] >= 0).all()),
                lines=tuple(dict.fromkeys(filter(None, (lines[row] for row in which)))),
                operators=tuple(dict.fromkeys(filter(None, (made_by[row] for row in which)))),
            )
        )
    return found


def _names(result: MemoryResult, table: Table, owner: Ints, starred: list[str]) -> tuple[str, ...]:
    modules, names = result.tape.modules, result.tape.names
    labels = []
    for row, module in zip(table, owner.tolist(), strict=True):
        label = names[row["name"]] if row["name"] >= 0 else modules[row["module"]].name if row["module"] >= 0 else ""
        if len(table) > 1 and module >= 0 and (name := modules[module].name):
            label = label.replace(name, starred[module])  # of many equal ones the number of each says nothing
        labels.append(label)
    return tuple(dict.fromkeys(label for label in labels if label))
