"""The stack of the thread that asks, for a source that sees operators from Python. Knows frames; no tensors."""

from __future__ import annotations

from types import CodeType, FrameType

from ..tape.stacks import StackTree
from ..torch_internals.autograd import current_node, graph_task, note_on


class PythonStacks:
    """The stacks that were asked for."""

    def __init__(self) -> None:
        self.tree = StackTree()
        # By a line's code, which stays as long as its identity is used, and the place in it.
        self._numbers: dict[tuple[int, int], tuple[CodeType, int]] = {}

    def row(self, frame: FrameType | None) -> int:
        """The row of a stack in the tree; in a backward, that of the forward whose gradient is computed.

        Args:
            frame: its innermost.
        """
        numbers, known = [], self._numbers
        while frame is not None:
            code = frame.f_code
            key = id(code), frame.f_lasti
            found = known.get(key)
            if found is None:
                number = self.tree.number(code.co_filename, frame.f_lineno or 0, code.co_name)
                found = known[key] = code, number
            numbers.append(found[1])
            frame = frame.f_back
        return self.tree.add(numbers, note_on(current_node()) if graph_task() >= 0 else ())
