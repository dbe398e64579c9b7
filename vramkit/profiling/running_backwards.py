"""The backwards that run in this process, and whose gradients they may write. Knows the engine's entry; no hook.

The autograd engine writes gradients from C++, without Python's lock. Whoever reads gradients holds ``lock`` and leaves
out what `written` names, and a backward begins under the same lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from types import CodeType
from typing import Any

from ..torch_internals.autograd import runs_backward
from .frames import frames_of_others


class RunningBackwards:
    """The backwards that have begun and not ended.

    Args:
        caller: the code of whoever calls `begin` and `end` around the engine's entry. Backwards that anything else
            calls began before it was there.
    """

    def __init__(self, caller: CodeType) -> None:
        self.lock = threading.RLock()
        self._caller = caller
        self._outputs: dict[object, Sequence[Any]] = {}
        self._leaves: dict[object, set[int]] = {}  # found once for each backward, and only if somebody asks
        self._are_others = True  # whether some may run that began before

    def begin(self, backward: object, outputs: Sequence[Any]) -> None:
        """A backward begins.

        Args:
            backward: what stands for it.
            outputs: what it starts from: tensors, or ``GradientEdge``s.
        """
        with self.lock:
            self._outputs[backward] = outputs

    def end(self, backward: object) -> None:
        """A backward has ended, or none had begun."""
        with self.lock:
            self._outputs.pop(backward, None)
            self._leaves.pop(backward, None)

    def written_by(self, backward: object) -> set[int]:
        """The ids of tensors whose gradients a backward that runs may write."""
        if backward not in self._leaves:
            self._leaves[backward] = _leaves_of(self._outputs[backward])
        return self._leaves[backward]

    def written(self, *, besides: object = None) -> set[int]:
        """The ids of tensors whose gradients may be written at this moment. To be called with ``lock`` held.

        Args:
            besides: a backward that has done so, and is not ended yet.
        """
        found: set[int] = set()
        for backward in self._outputs:
            if backward is not besides:
                found |= self.written_by(backward)
        if self._are_others:
            others = list(self._others())
            self._are_others = bool(others)
            for outputs in others:
                found |= _leaves_of(outputs)
        return found

    def _others(self) -> Iterator[Sequence[Any]]:
        """What the backwards of other threads started from that began before anyone called `begin`."""
        for _, frame in frames_of_others():
            caller = frame.f_back
            if runs_backward(frame) and (caller is None or caller.f_code is not self._caller):
                yield frame.f_locals[frame.f_code.co_varnames[0]]


def _leaves_of(outputs: Sequence[Any]) -> set[int]:
    """The ids of the tensors at the ends of a graph: all that a backward writes gradients of.

    Nested ones, of a checkpoint's own graph, are backwards of their own.
    """
    found, ready = set(), []
    for output in outputs:
        node = node_of(output)
        if node is None:
            found.add(id(output))
        else:
            ready.append(node)
    seen = set(ready)
    while ready:
        node = ready.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.add(id(leaf))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                ready.append(following)
    return found


def node_of(output: Any) -> Any:
    """The node that made a tensor, or that a ``GradientEdge`` names; None: it is a leaf."""
    node = getattr(output, "grad_fn", None)
    return getattr(output, "node", None) if node is None else node
