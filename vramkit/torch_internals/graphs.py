"""torch's private names of CUDA graphs. Knows where ``make_graphed_callables`` keeps the tensors of a graph, and what
gives cuBLAS's workspaces back.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .names import Place, place_of

CLEARS: Place = place_of("torch._C._cuda_clearCublasWorkspaces", "profile on CUDA", fallback=None)
"""What gives cuBLAS's workspaces back; its owner is None where nothing does. Graphs of ``torch.compile`` call it before
they warm up or record, and after it, so that none is theirs that others would go on with."""

_KINDS = {
    "static_input_surface": "static input",
    "static_outputs": "static output",
    "static_grad_outputs": "static gradient of output",
    "static_grad_inputs": "static gradient of input",
}
"""Variables of the function that torch makes of a callable, and what they hold. A torch that calls them something else
has none of these names, and then nothing is found."""
_DEPTH = 4  # of functions in functions


def static_tensors(graphed: Callable[..., Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """What a graphed callable's replays read and write, each with what it is: ``"static output 0"``; no parameters.

    Args:
        graphed: a module or a function that ``torch.cuda.make_graphed_callables`` returned.
    """
    called = graphed.forward if isinstance(graphed, torch.nn.Module) else graphed
    for name, value in _closed_over(called, _DEPTH):
        for i, tensor in enumerate(value if name in _KINDS and isinstance(value, tuple) else ()):
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, torch.nn.Parameter):
                yield f"{_KINDS[name]} {i}", tensor


def _closed_over(value: object, depth: int) -> Iterator[tuple[str, object]]:
    if isinstance(value, type):
        for each in vars(value).values():
            yield from _closed_over(getattr(each, "__func__", None), depth)
    elif isinstance(value, types.FunctionType) and depth:
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                inner = cell.cell_contents
            except ValueError:  # it is empty
                continue
            yield name, inner
            yield from _closed_over(inner, depth - 1)
