"""What stacks, sizes and lives say of a snapshot's allocations: the phase that made them, and cuBLAS's workspaces.

Knows a tape without marks and torch's own files and functions; claims nothing that these don't say.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..gpus import CUBLAS_WORKSPACE
from ..tape.events import Category, Phase, Tape
from ..tape.stacks import CUBLAS, ENGINE, Frame, Stacks

_OF_A_STREAM = 2
"""Threads that have a workspace for one stream, at most: the program's and autograd's. More are possible, and rare."""

_STARTS_A_BACKWARD = ("torch/autograd/function.py", "torch/utils/checkpoint.py")
"""Files of torch's that call a function of the program's on autograd's threads, where nothing else has called them."""


def labelled(tape: Tape) -> Tape:
    """A snapshot's tape, with what can be known of its allocations: all but the workspaces are ``OTHER``."""
    table = tape.allocations.copy()
    table["category"] = Category.OTHER
    stacks = tape.stacks
    if stacks is not None:
        table["phase"] = np.append(_phases(stacks), np.uint8(Phase.OUTSIDE))[stacks.of]
    workspaces = _workspaces(tape)
    table["category"][workspaces], table["phase"][workspaces] = Category.WORKSPACE, Phase.OUTSIDE
    if stacks is not None:  # whoever needs one first is not to blame
        stacks = replace(stacks, of=np.where(workspaces, np.int32(-1), stacks.of))
    return replace(tape, allocations=table, stacks=stacks, knows_phases=False)


# -- phases ------------------------------------------------------------------------------------------------------------


def _phases(stacks: Stacks) -> npt.NDArray[np.uint8]:
    """Of each stack the phase that its innermost frame of torch's says; ``OUTSIDE``: none does."""
    of_frame = [_phase_of(frame) for frame in stacks.frames]
    starts = [frame.file in _STARTS_A_BACKWARD for frame in stacks.frames]
    found: list[Phase] = []
    for frame, parent in stacks.table.tolist():
        outer = found[parent] if parent >= 0 else Phase.BACKWARD if starts[frame] else Phase.OUTSIDE
        own = of_frame[frame]
        # A module that runs inside of a backward belongs to it: a checkpoint's recomputation.
        found.append(outer if own is Phase.OUTSIDE or (own, outer) == (Phase.FORWARD, Phase.BACKWARD) else own)
    return np.array(found, np.uint8)


def _phase_of(frame: Frame) -> Phase:
    if frame.file == ENGINE:
        return Phase.BACKWARD
    if frame.file == "torch/nn/modules/module.py" and frame.function.endswith("_call_impl"):
        return Phase.FORWARD
    # Every subclass's step runs inside of this wrapper.
    if frame.file == "torch/optim/optimizer.py" and frame.function in ("wrapper", "profile_hook_step"):
        return Phase.OPTIMIZER
    return Phase.OUTSIDE


# -- workspaces --------------------------------------------------------------------------------------------------------


def _workspaces(tape: Tape) -> npt.NDArray[np.bool_]:
    """Which allocations cuBLAS has taken for itself.

    The stack says it where it has torch's C++. Else a size alone says nothing: logits of 32,768 x 65 in float32 have
    that of a workspace. Of such a size, what lives to the end is believed: of each stream the first with and the first
    without a stack (autograd's thread runs no Python), or the very first where there are no stacks; and what was there
    before the first event, if it is no more than a stream can have and nothing else of that size ever came. Wrong for
    a program that keeps such a tensor from before the history began.
    """
    table, stacks = tape.allocations, tape.stacks
    found = np.zeros(len(table), bool)
    known = np.zeros(len(table), bool)
    with_stack = np.zeros(len(table), bool)
    if stacks is not None:
        of_cublas = _inside(stacks, CUBLAS)
        found = np.append(of_cublas, False)[stacks.of]
        with_stack = stacks.of >= 0
        if any(frame.file in (CUBLAS, ENGINE) for frame in stacks.frames):  # so they have torch's C++
            known = with_stack
    like_one = (table["requested"] == CUBLAS_WORKSPACE) & ~known
    of_stream: dict[int, list[int]] = defaultdict(list)
    for row in np.flatnonzero(like_one).tolist():
        of_stream[int(table["stream"][row])].append(row)
    for stream, rows in of_stream.items():
        room = _OF_A_STREAM - np.count_nonzero(found & (table["stream"] == stream))
        stay = [row for row in rows if table["died"][row] < 0]
        before = [row for row in stay if table["born"][row] < 0]
        later = [row for row in stay if table["born"][row] >= 0]
        if before:
            chosen = before if len(before) == len(rows) else []
        elif with_stack.any():
            sides = [[row for row in later if with_stack[row] == side] for side in (True, False)]
            chosen = [side[0] for side in sides if side]
        else:
            chosen = later[:1]
        if len(chosen) <= room:
            found[chosen] = True
    return found


def _inside(stacks: Stacks, file: str) -> npt.NDArray[np.bool_]:
    """Which stacks have a frame of a file."""
    of_frame = [frame.file == file for frame in stacks.frames]
    found: list[bool] = []
    for frame, parent in stacks.table.tolist():
        found.append(of_frame[frame] or (parent >= 0 and found[parent]))
    return np.array(found, bool)
