"""CUDA graphs while a recording runs: how often they are replayed, what ``make_graphed_callables`` keeps for them, and
which workspaces are given back around their captures.

Knows the functions of torch's that do it; no pools.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch

from ..attribution.recording import Kind
from ..tape.events import Category
from ..torch_internals.graphs import CLEARS, static_tensors
from .handles import replace
from .marks import Marks

_CATEGORIES = {
    "static input": None,  # the sample, which the model was given: it is known already
    "static output": Category.ACTIVATION,
    "static gradient": Category.OTHER,  # kept for good; those that become parameters' gradients are told as that
}


class Graphs:
    """Counts the replays of every CUDA graph, ``torch.compile``'s too: a replay makes no event that could be seen.

    Args:
        marks: where it is laid down which tensors are static.
    """

    def __init__(self, marks: Marks) -> None:
        self.replays = 0
        self._marks = marks

    def install(self, stack: ExitStack) -> None:
        """Begin to look; the stack ends it."""
        owner: Any = torch.cuda.CUDAGraph
        plain = vars(owner)["replay"]

        def replay(graph: Any, *args: Any, **kwargs: Any) -> Any:
            self.replays += 1
            return plain(graph, *args, **kwargs)

        stack.callback(setattr, owner, "replay", plain)
        owner.replay = replay
        if CLEARS.owner is not None:
            clear = vars(CLEARS.owner)[CLEARS.name]

            def clear_workspaces(*args: Any) -> Any:
                with self._marks.around(Kind.CLEARS):
                    return clear(*args)

            replace(stack, CLEARS.owner, CLEARS.name, clear_workspaces)
        make: Any = torch.cuda.make_graphed_callables

        def make_graphed_callables(*args: Any, **kwargs: Any) -> Any:
            made = make(*args, **kwargs)
            for each in made if isinstance(made, tuple) else (made,):
                self._name(each)
            return made

        for module in (torch.cuda, torch.cuda.graphs):
            stack.callback(setattr, module, "make_graphed_callables", make)
            module.make_graphed_callables = make_graphed_callables  # type: ignore[attr-defined] # as another function

    def _name(self, graphed: Any) -> None:
        kind = (
            type(graphed).__name__ if isinstance(graphed, torch.nn.Module) else getattr(graphed, "__name__", "function")
        )
        if self._marks.is_open:
            for what, tensor in static_tensors(graphed):
                category = next(each for name, each in _CATEGORIES.items() if what.startswith(name))
                names = (f"{what} of {kind}'s graph",)
                self._marks.scan(self._marks.lines.current(), category, [tensor.data_ptr()], names)

    def note(self) -> str:
        """What to say of replays; empty: there were none."""
        if not self.replays:
            return ""
        times = "once" if self.replays == 1 else f"{self.replays:,} times"
        return (
            f"CUDA graphs were replayed {times}. A replay allocates nothing, so what runs in one is not seen: it works "
            'in the memory that the graph had when it was captured, "graph pools" where no tensor has it.'
        )
