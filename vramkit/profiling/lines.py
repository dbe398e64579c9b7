"""The lines of a program: one for each of its threads, so that the marks of two that train at once are told apart.

Knows threads, and for which of them the autograd engine's own threads work. Knows no mark and no tensor.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch

from ..torch_internals.autograd import graph_task, next_number


class Line:
    """What one thread of the program does, and the autograd engine's threads while they work for it.

    Args:
        number: of the line, from 0 on.
        prefix: of the texts that say where its marks are.
        thread: dies with the thread.
    """

    __slots__ = (
        "_thread",
        "at_missed",
        "at_module",
        "backward_at",
        "backwards",
        "first_node",
        "forwards",
        "is_followed",
        "is_looked_at",
        "leaves",
        "many_nodes",
        "marked_nodes",
        "misses",
        "node_hooks",
        "number",
        "prefix",
        "recent",
        "root_hooks",
        "task",
        "trains",
    )

    def __init__(self, number: int, prefix: str, thread: object) -> None:
        self.number = number
        self.prefix = prefix
        self._thread = weakref.ref(thread)
        self.trains = False
        """Whether it ran a backward or an optimizer's step."""
        self.is_followed = True
        """Whether its forward is followed module by module; a backward is where all that it goes through was."""
        self.is_looked_at = True
        """Whether all tensors of models and optimizers are looked at, or only whether some have moved."""
        self.forwards: dict[object, int] = {}
        """How many outermost forwards of each kind it ran."""
        self.recent: tuple[object, ...] = ()
        """What it did last: forwards, backwards and optimizers' steps."""
        self.misses = False
        """Whether its backward went through a forward that was not followed."""
        self.backwards = 0
        self.backward_at = -1
        """The module that its backward has reached."""
        self.task = -1
        """The engine's number for its backward."""
        self.first_node = next_number()
        """Nodes of its graphs with lower numbers were made before."""
        self.marked_nodes: set[int] = set()
        """Numbers of nodes that have a hook."""
        self.many_nodes = 0
        """With more hooks than so many it is looked which of them are on nodes that are gone."""
        self.node_hooks: list[Any] = []
        """Handles of the hooks on nodes of its forwards."""
        self.root_hooks: list[Any] = []
        """Handles of those on the nodes from which its backward starts."""
        self.leaves: dict[int, weakref.ref[torch.Tensor]] = {}
        """Tensors that came to its modules or from them, get gradients, and are no parameters; by their ids."""
        self.at_module: dict[int, Callable[[object], None]] = {}
        """The hook of each module's nodes."""
        self.at_missed: dict[int, Callable[[object], None]] = {}
        """The same, for the ends of forwards that are not followed."""

    def is_alive(self) -> bool:
        """Whether its thread still runs."""
        return self._thread() is not None

    def forget_dead_leaves(self) -> None:
        """Forget those that are gone."""
        self.leaves = {key: leaf for key, leaf in self.leaves.items() if leaf() is not None}


class _Thread:
    """Dies with the thread that it was made in."""


class Here(threading.local):
    """What is known of the thread that asks."""

    def __init__(self) -> None:
        self.line: Line | None = None
        self.stack: list[int] = []
        """The modules whose forwards it is in, from the outermost one on."""
        self.skips = False
        """Whether it is in a forward that is not followed."""
        self.in_step: list[int] = []
        """The optimizers whose steps it has begun."""
        self.thread = _Thread()


class Lines:
    """Every line that was met.

    Args:
        name: of the recording; texts that say where marks are begin with it.
    """

    def __init__(self, name: str) -> None:
        self.here = Here()
        self._name = name
        self._numbers = itertools.count()
        self._met: list[Line] = []
        self._of_task: dict[int, Line] = {}

    def current(self) -> Line:
        """The line that this thread is on. The autograd engine's threads are on that of the thread that they serve."""
        served = self._of_task.get(graph_task())
        if served is not None:
            return served
        line = self.here.line
        if line is None:
            number = next(self._numbers)
            prefix = f"{self._name}.{number}:" if number else f"{self._name}:"
            line = self.here.line = Line(number, prefix, self.here.thread)
            self._met.append(line)
        return line

    def number(self) -> int:
        """The number of the line that this thread is on, without making one; 0 where it is on none."""
        line = self._of_task.get(graph_task()) or self.here.line
        return 0 if line is None else line.number

    def begin_task(self, line: Line) -> None:
        """The engine begins a line's backward, in this thread."""
        line.task = graph_task()
        self._of_task[line.task] = self.here.line = line

    def end_task(self, line: Line) -> None:
        """The engine has ended a line's backward."""
        self._of_task.pop(line.task, None)

    def met(self) -> list[Line]:
        """All of them up to now."""
        return self._met.copy()

    def by_prefix(self) -> dict[str, int]:
        """The number of each line, by the prefix of its texts without the colon."""
        return {line.prefix[:-1]: line.number for line in self._met}
