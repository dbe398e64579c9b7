"""The hooks of optimizers: when their steps begin and end. Knows ``torch.optim``; neither modules nor backwards."""

from __future__ import annotations

import torch

from ..attribution.recording import Kind
from ..torch_internals.optimizers import is_step
from .following import Following
from .frames import own_frames
from .marks import Marks
from .step_ends import StepEnds
from .tracked_tensors import TrackedTensors


class OptimizerHooks:
    """What runs before and after each optimizer's step.

    Args:
        marks: where marks are laid down.
        tensors: what optimizers are made known to.
        ends: is told of every step.
        following: as well.
    """

    def __init__(self, marks: Marks, tensors: TrackedTensors, ends: StepEnds, following: Following) -> None:
        self._marks = marks
        self._tensors = tensors
        self._ends = ends
        self._following = following
        self._here = marks.lines.here

    def begins(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """A step begins. The arguments are those of torch's hooks."""
        line = self._marks.lines.current()
        line.trains = True
        self.close_steps()
        index = self._tensors.add_optimizer(optimizer)
        self._tensors.use_optimizer(index, line)
        self._here.in_step.append(index)
        self._following.note(line, index)
        self._marks.lay(line, Kind.OPTIMIZER, index)

    def ended(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """A step has ended."""
        line = self._marks.lines.current()
        index = self._tensors.add_optimizer(optimizer)
        if index in self._here.in_step:  # else it began before the recording did
            self._here.in_step.remove(index)
            self._marks.lay(line, Kind.OPTIMIZER_END, index)
        self._tensors.look_at_state(index, again=line.is_looked_at)
        if self._marks.is_open:
            self._ends.optimizer_stepped(optimizer, self._tensors.parameter_ids)

    def close_steps(self) -> None:
        """End this thread's steps that an exception left: torch calls no hook then. A closure's forward is in one."""
        in_step = self._here.in_step
        while in_step and not any(map(is_step, own_frames())):
            in_step.pop()
            self._marks.lay(self._marks.lines.current(), Kind.OPTIMIZER_END, -1)
