"""What stacks say of a snapshot's allocations: the phase that made them, and cuBLAS's workspaces.

Knows a tape without marks and torch's own files and functions; claims nothing that these don't say.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..gpus import CUBLAS_WORKSPACE
from ..tape.events import Category, Phase, Tape
from ..tape.stacks import CUBLAS, ENGINE, Frame, Stacks

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
    """Which allocations cuBLAS has taken for itself, as a stack with torch's C++ says. A size alone says nothing: of
    32,768 x 65 in float32 logits have that of a workspace.
    """
    found = np.zeros(len(tape.allocations), bool)
    return found if tape.stacks is None else np.append(_inside(tape.stacks, CUBLAS), False)[tape.stacks.of]


def may_be_workspaces(tape: Tape) -> npt.NDArray[np.bool_]:
    """What is held at the end, is as large as a workspace, and of which no stack tells who made it: a stack without
    torch's C++ has the program's line either way.
    """
    table, stacks = tape.allocations, tape.stacks
    alike: npt.NDArray[np.bool_] = (
        (table["requested"] == CUBLAS_WORKSPACE) & (table["died"] < 0) & (table["category"] != Category.WORKSPACE)
    )
    if stacks is not None and any(frame.file in (CUBLAS, ENGINE) for frame in stacks.frames):  # so they have the C++
        alike &= stacks.of < 0
    return alike


def _inside(stacks: Stacks, file: str) -> npt.NDArray[np.bool_]:
    """Which stacks have a frame of a file."""
    of_frame = [frame.file == file for frame in stacks.frames]
    found: list[bool] = []
    for frame, parent in stacks.table.tolist():
        found.append(of_frame[frame] or (parent >= 0 and found[parent]))
    return np.array(found, bool)
