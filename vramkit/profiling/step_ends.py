"""When training steps end, while the program still runs. Knows optimizers and gradients; lays down no mark.

Afterwards the marks say it better (``vramkit.attribution.context``): they know which optimizers came again. Both call
the same a step wherever optimizers take turns.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable

import torch

_PATIENCE = 10
"""So often one optimizer may step before another is taken to be out of use: one of an earlier training, or one that
nobody has any more and Python has not collected. Wrong for a GAN whose critic takes more steps than that for one of the
generator's: each of them then counts."""


class StepEnds:
    """Tells a listener of each training step that has ended.

    That is when each optimizer in use has stepped. In use are those that have stepped, and those that are there at the
    first step with parameters of their own, of models that have run. Where none steps, as with
    ``p.data.add_(p.grad, alpha=-lr)``, a step has ended when a pass begins after a backward and without gradients.
    """

    def __init__(self) -> None:
        self.tell: Callable[[int], object] | None = None
        """Called with the number of steps that have ended, in the thread that ended the last one. What it raises goes
        through the program. None: nobody listens, and nothing is looked at."""
        self._count = 0
        self._in_use: dict[int, weakref.ref[torch.optim.Optimizer]] = {}
        self._times: Counter[int] = Counter()  # how often each has stepped since the last end
        self._has_run_backward = False
        self._is_said = False

    def said(self) -> None:
        """The program itself says that a step has ended; from then on nothing else does."""
        if not self._is_said:
            self._is_said, self._count = True, 0
        self._end(1)

    def optimizer_stepped(self, optimizer: torch.optim.Optimizer, parameters: Callable[[], set[int]]) -> None:
        """An optimizer's step has ended.

        Args:
            optimizer: it.
            parameters: the ids of those that the models have which have run.
        """
        if self.tell is None or self._is_said:
            return
        if not self._in_use:
            self._in_use = {id(each): weakref.ref(each) for each in _others_beside(optimizer, parameters())}
        self._in_use[id(optimizer)] = weakref.ref(optimizer)
        self._times[id(optimizer)] += 1
        most = max(self._times.values())
        waits = [key for key, ref in self._in_use.items() if ref() is not None and not self._times[key]]
        if not waits:
            self._end(1)
        elif most > _PATIENCE:
            for key in waits:
                del self._in_use[key]
            self._end(most)

    def backward_ended(self) -> None:
        """A backward has ended."""
        self._has_run_backward = True

    def pass_begins(self, has_gradients: Callable[[], bool]) -> None:
        """A forward, or the backward after it, begins."""
        if self.tell is None or self._is_said or self._in_use or not self._has_run_backward or has_gradients():
            return
        self._has_run_backward = False
        self._end(1)

    def _end(self, steps: int) -> None:
        self._times.clear()
        self._count += steps
        if self.tell is not None:
            self.tell(self._count)


def _others_beside(optimizer: torch.optim.Optimizer, parameters: set[int]) -> list[torch.optim.Optimizer]:
    """The optimizers that are there, with some of these parameters which no other of them has."""
    held = _parameters_of(optimizer)
    others = []
    for each in gc.get_objects():
        # To ask an object itself, as isinstance() does, may run anything. One that wraps another has no groups itself.
        if not issubclass(type(each), torch.optim.Optimizer) or "param_groups" not in vars(each):
            continue
        own = parameters & _parameters_of(each) - held
        if own:
            held |= own
            others.append(each)
    return others


def _parameters_of(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
