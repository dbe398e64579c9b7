"""What a recording that ends with an optimizer's first step does not show: the state which that step made is there in
the forward and the backward of the next one. Knows tapes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..sizes import format_size
from ..tape.events import Action, Category, Ints, Phase, Tape

_WORK = (Phase.FORWARD, Phase.BACKWARD, Phase.RECOMPUTE)


def note_of(tape: Tape) -> str:
    """What to say where the next step would need more than was measured; empty: nothing says so.

    Assumes that it does what the last one did, in blocks of the same sizes. What it frees later comes on top.

    Args:
        tape: of the recording.
    """
    table, events = tape.allocations, tape.events
    updates = np.flatnonzero(events["phase"] == Phase.OPTIMIZER)
    if tape.is_window or not len(updates) or (events["action"] == Action.OOM).any():
        return ""
    step = int(events["step"][updates[-1]])
    works = np.isin(events["phase"], _WORK) & (events["step"] == step)
    if not works.any() or (np.isin(events["phase"], _WORK) & (events["step"] > step)).any():
        return ""
    states = _still_to_come(tape, table["category"] == Category.OPTIMIZER_STATE, updates[-1])
    workspaces = _still_to_come(tape, table["category"] == Category.WORKSPACE, updates[-1])
    then = tape.allocated + states + workspaces
    event = int(np.where(works, then, -1).argmax())
    if then[event] <= tape.peak_allocated or not states[event]:
        return ""
    return (
        f"Step {step + 1} is the last that was measured, and its optimizer made {format_size(int(states[event]))} of "
        "state that its forward and backward did without. The next step has it from the beginning, and allocates "
        f"about {format_size(int(then[event]))}: measure more steps."
    )


def _still_to_come(tape: Tape, chosen: npt.NDArray[np.bool_], until: int) -> Ints:
    """How much more of some allocations there is after one event than after each; bytes, shape ``(events,)``."""
    table, has = tape.allocations[chosen], np.zeros(len(tape.events) + 1, np.int64)
    np.add.at(has, table["born"] + 1, table["block"])  # what was there before has -1
    freed = table[table["died"] >= 0]
    np.subtract.at(has, freed["died"] + 1, freed["block"])
    has = np.cumsum(has)[1:]
    result: Ints = has[until] - has
    return result
