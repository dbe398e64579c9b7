"""The words that all reports share: names of categories and phases, and sentences about a moment and a failure.

Knows results and moments; wraps and lays out nothing.
"""

from __future__ import annotations

import numpy as np

from ..sizes import format_size
from ..tape.events import Category, Phase
from ..tape.memory import MemoryResult
from .layout import counted
from .moment import Moment, peaks_of, work_after
from .tree import shown_name

_NAME = 60
"""Characters of a module's name in a sentence, at most."""

CATEGORY_NAMES = {
    Category.PARAMETER: "parameters",
    Category.BUFFER: "buffers",
    Category.GRADIENT: "gradients",
    Category.OPTIMIZER_STATE: "optimizer state",
    Category.INPUT: "inputs",
    Category.ACTIVATION: "activations",
    Category.TEMPORARY: "temporaries",
    Category.WORKSPACE: "cuBLAS workspace",
    Category.OTHER: "other",
    Category.MODEL_COPY: "copies of models",
    Category.DATASET: "data sets",
    Category.OUTPUT: "kept outputs",
    Category.GATHERED: "gathered parameters",
    Category.COMMUNICATION: "communication buffers",
}
PHASE_NAMES = {
    Phase.OUTSIDE: "between the phases",
    Phase.FORWARD: "forward",
    Phase.BACKWARD: "backward",
    Phase.OPTIMIZER: "optimizer step",
    Phase.RECOMPUTE: "recomputation",
    Phase.EVALUATION: "evaluation",
}


def step_count(result: MemoryResult) -> int:
    """Steps of a result, one that came to no end included; 0: nothing ran."""
    events = result.tape.events
    return int(events["step"].max()) + 1 if (events["phase"] != Phase.OUTSIDE).any() else 0


def steps_of(result: MemoryResult) -> str:
    """``"2 steps"``; where nothing trains, ``"2 steps of evaluation"``. Empty: nothing ran."""
    count = step_count(result)
    return counted(count, "step") + " of evaluation" * (not result.tape.trains) if count else ""


def step_at(result: MemoryResult, event: int) -> str:
    """``"step 2"``; in a program that trains, of evaluation: ``"after step 2"``. Empty: nothing ran.

    Args:
        result: of which the event is.
        event: its index.
    """
    phase = result.tape.events["phase"]
    training = ~np.isin(phase, (Phase.OUTSIDE, Phase.EVALUATION))
    if phase[event] == Phase.OUTSIDE and step_count(result) and not (phase[:event] != Phase.OUTSIDE).any():
        return "before step 1"
    if phase[event] != Phase.EVALUATION or not training.any():
        return f"step {int(result.tape.events['step'][event]) + 1}" if step_count(result) else ""
    before = np.flatnonzero(training[:event])
    return f"after step {int(result.tape.events['step'][before[-1]]) + 1}" if len(before) else "before step 1"


def place(phase: Phase, module: str = "") -> str:
    """``"in the backward of Net.head"``."""
    words = PHASE_NAMES[phase] if phase is Phase.OUTSIDE else f"in the {PHASE_NAMES[phase]}"
    return words + (f" of {shown_name(module, _NAME)}" if module else "")


def when(result: MemoryResult, moment: Moment) -> str:
    """``"in the backward of Net.head, step 2 of 3"``; of a snapshot ``"in the backward, at event 812 of 1,097"``."""
    if moment.event < 0:
        return "before the first event"
    if not result.tape.knows_phases:
        return at_event(result, moment.event, moment.phase)
    step = step_at(result, moment.event)
    return place(moment.phase, moment.module) + (f", {step} of {step_count(result)}" if step else "")


def at_event(result: MemoryResult, event: int, phase: Phase) -> str:
    """Where a snapshot's history was."""
    where = f"{place(phase)}, " if phase is not Phase.OUTSIDE else ""
    return f"{where}at event {event + 1:,} of {len(result.tape.events):,}"


def highest(result: MemoryResult, function: str) -> str:
    """What a result's highest memory is called: torch's function; of a window something that claims less.

    Args:
        result: of one device.
        function: torch's name, without ``max_``: ``"memory_allocated()"``.
    """
    if result.is_moment:
        return f"torch.cuda.{function}"
    return "the highest in what was kept" if result.is_window else f"torch.cuda.max_{function}"


def at_most(result: MemoryResult) -> str:
    """What stands before a result's highest figures: ``"at most "``; of a window it says of what."""
    return "" if result.is_moment else "in what was kept at most " if result.is_window else "at most "


def reserved_at(result: MemoryResult) -> str:
    """Where reserved memory was highest."""
    event = int(result.tape.reserved.argmax()) if len(result.tape.events) else -1
    if event < 0 or result.tape.initial_reserved >= result.peak_reserved:
        return "before the first event"
    phase = Phase(int(result.tape.events["phase"][event]))
    if not result.tape.knows_phases:
        return at_event(result, event, phase)
    return place(phase) + (f", {step_at(result, event)}" if step_count(result) else "")


def both_peaks(result: MemoryResult) -> str:
    """Where training and where evaluation reached most; empty: the highest moment of all says it.

    So it does of only one of them, unless most memory was allocated in neither: while a model was made, say.
    """
    told = [
        f"{name} reached at most {format_size(each.allocated)} ({place(each.phase, each.module)}, "
        f"{step_at(result, each.event)})"
        for name, each in zip(("Training", "evaluation"), peaks_of(result), strict=True)
        if each is not None
    ]
    tape = result.tape
    in_neither = told and tape.events["phase"][tape.allocated.argmax()] == Phase.OUTSIDE
    text = f"{', '.join(told)}." if len(told) == 2 or in_neither else ""
    return text[:1].upper() + text[1:]


def failure(result: MemoryResult, moment: Moment) -> str:
    """What was asked for when memory ran out, and what there was. The moment must be a failure's."""
    failed, held = moment.failed, moment.breakdown
    assert failed is not None
    failures = len(result.out_of_memory)
    several = f" {counted(failures, 'allocation')} failed; this is the last." * (failures > 1)
    free = failed.device_free or max(0, result.capacity - held.used)
    of = f" of {format_size(result.capacity)}" if result.capacity else " on the device"
    known = f"{format_size(free)}{of} were free, and the" if result.capacity or failed.device_free else "The"
    more = format_size(held.cached + held.graph_pools)
    return (
        f"{format_size(failed.requested)} ({failed.requested:,} B) were asked for {when(result, moment)}."
        f" {known} allocator held {more} more that it could not use for this.{several}"
    )


def recovered(result: MemoryResult, moment: Moment) -> str:
    """What is to be said of allocations that failed, after which the program went on; empty: there are none."""
    if not moment.recovered:
        return ""
    last, many = moment.recovered[-1], len(moment.recovered)
    again = int(work_after(result.tape, last.event).argmax())
    since = int(result.tape.allocated[last.event + 1 :][again:].max())
    head = f"{counted(many, 'allocation')} failed, the last" if many > 1 else "An allocation failed,"
    where = (
        f"{place(last.phase, last.module)} ({step_at(result, last.event)})"
        if result.tape.knows_phases
        else at_event(result, last.event, last.phase)
    )
    return (
        f"{head} of {format_size(last.requested)} {where}, and "
        f"the program went on: with at most {format_size(since)} allocated since."
    )
