"""The operator that a dispatch mode sees, as a tape names it. Knows operators and the node that runs; no tensor."""

from __future__ import annotations

from functools import lru_cache
from types import FrameType
from typing import Any

from ..tape.native_frames import operator_text
from ..torch_internals.autograd import current_node, graph_task, runs_backward

_BETWEEN = frozenset({"torch._compile", "torch._dynamo.eval_frame"})  # a mode and what called the operator


def operator_seen(func: Any, frame: FrameType | None) -> str:
    """``"aten::mm"``, and in a backward ``"aten::mm (MmBackward0)"``.

    Args:
        func: as the mode gets it.
        frame: of what called the mode; None: C++ of a thread that runs no Python.
    """
    return operator_text(_name(func), _node(frame) if graph_task() >= 0 else "")


@lru_cache(maxsize=10_000)
def _name(func: Any) -> str:
    return str(func.name()).partition(".")[0]


def _node(frame: FrameType | None) -> str:
    """The node whose formula C++ computes; of one that Python computes, or whose hook runs, nothing."""
    while frame is not None and frame.f_globals.get("__name__") in _BETWEEN:
        frame = frame.f_back
    node = current_node()
    if node is None or not (frame is None or runs_backward(frame)):
        return ""
    return str(node.name()).rpartition("::")[2]
