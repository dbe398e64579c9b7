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
    failed = failures[-1] if failures and not _went_on(tape, failures[-1].event) else None
    event = failed.event if failed else tape.peak_event
    row = tape.events[event] if event >= 0 else None
    module = int(row["module"]) if row is not None else -1
    return Moment(
        event=event,
        breakdown=failed.breakdown if failed else result.peak,
        alive=tape.alive_at(event),
        step=int(row["step"]) if row is not None else 0,
        phase=Phase(int(row["phase"])) if row is not None else Phase.OUTSIDE,
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


def _went_on(tape: Tape, event: int) -> bool:
    """Whether a model or an optimizer ran after an event: an exception on its way out only frees."""
    later = tape.events[event + 1 :]
    return bool(((later["action"] == Action.ALLOC) & (later["phase"] != Phase.OUTSIDE)).any())


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
    found = []
    for (size, category, phase, _), rows in groups.items():
        names = _names(result, table[rows], owner[rows], starred)
        found.append(
            Tensors(
                count=len(rows),
                size=size,
                category=Category(category),
                phase=Phase(phase),
                names=names,
                named=bool(names) and bool((table["name"][rows] >= 0).all()),
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
