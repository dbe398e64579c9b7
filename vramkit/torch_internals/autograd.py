"""torch's private names of autograd: the engine's entry, and nodes of a graph. Knows no hook and no tensor's memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, SimpleNamespace
from typing import Any

import torch

from .names import caller_of, look_up, place_of, reader_of, word_of

RUN_BACKWARD = place_of("torch.autograd._engine_run_backward", "profile", "fake engine")
"""What ``backward()`` and ``grad()`` call, and look up when they are called: torch has no hook for "a backward begins".
Its arguments: tensors, their gradients, retain_graph, create_graph, and more."""

graph_task: Callable[[], int] = look_up("torch._C._current_graph_task_id", "profile", "fake engine")
"""A number for the backward that this thread works for; below 0: for none."""

current_node: Callable[[], Any] = look_up("torch._C._current_autograd_node", "profile on the CPU", "fake engine")
"""The node whose formula this thread computes; None: no node's."""

sequence_number: Callable[[Any], int] = caller_of("torch._C._functions.UndefinedGrad._sequence_nr", "profile")
"""The number of a node, which its thread counts. Nodes of C++ have no class in common; this one stands for all."""

results_of: Callable[[Any], Sequence[Any]] = reader_of("torch._C._functions.UndefinedGrad._input_metadata", "programs")
"""What the operator gave whose node this is: shapes and dtypes, as of the gradients that the node takes."""

is_tracing: Callable[[], object] = look_up(
    "torch._C._get_tracing_state",
    "profile",
    fallback=torch.jit.is_tracing,  # type: ignore[attr-defined] # public, though its file says so nowhere
)
"""Whether ``torch.jit.trace`` looks at what runs."""

FORMAT_STACK = place_of("torch.fx.traceback.format_stack", "profile", fallback=SimpleNamespace(format_stack=list))
"""What makes the note on a node that is made while anomaly detection is on; C++ looks it up for each. The list of texts
that it returns stays with the node."""

keeps_own_notes: Callable[[], bool] = look_up(
    "torch.fx.traceback.has_preserved_node_meta", "profile", fallback=lambda: False
)
"""Whether a compiler keeps notes of its own on the nodes that are made."""

_NOTE = "traceback_"

_CONTEXT = word_of("torch.autograd.Function._backward_cls", "profile")

_TARGETS = tuple(
    word_of(f"torch.autograd.graph.Node.{name}", "profile") for name in ("_saved_target", "_saved_targets")
)


def _make_a_node() -> int:
    with torch.enable_grad(), torch.inference_mode(False):
        # Not on the device that the program may have made its default: that would be an allocation of its own.
        return sequence_number(torch.zeros((), device="cpu", requires_grad=True).neg().grad_fn)


next_number: Callable[[], int] = look_up("torch.autograd._get_sequence_nr", "profile", fallback=_make_a_node)
"""The number that the next node of this thread gets, or the one before. To ask makes no node: of two threads' nodes the
engine runs those with the higher number first, so that one more in a thread would change a program's order."""


def note_on(node: Any) -> Sequence[str]:
    """What was noted on a node when it was made; empty: nothing."""
    found = node.metadata.get(_NOTE) if node is not None else None
    return found if isinstance(found, list) else ()


def saved_targets(node: Any) -> Iterator[torch.Tensor]:
    """What a loss's node keeps to compare with. To read it is to unpack it."""
    for name in _TARGETS:
        try:
            target = getattr(node, name, None)
        except RuntimeError:  # this graph's tensors were freed; the engine will say so better
            continue
        if isinstance(target, torch.Tensor):
            yield target


def contexts_of(modules: Callable[[str], bool]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is there of calls of custom functions: each function's name, and what its ``forward`` has set on ``ctx``.

    Args:
        modules: says by the name of a function's module whether to look for its calls.
    """
    kinds, pending = dict[type, str](), torch.autograd.Function.__subclasses__()
    while pending:
        each = pending.pop()
        pending += each.__subclasses__()
        if modules(each.__module__) and (kind := getattr(each, _CONTEXT, None)) is not None:
            kinds[kind] = each.__name__
    if kinds:  # in a cycle with its own output a context can be found no other way
        for context in gc.get_objects():
            if (kind := type(context)) in kinds:
                yield kinds[kind], object.__getattribute__(context, "__dict__")


def runs_backward(frame: FrameType) -> bool:
    """Whether a frame is that of the engine's entry, which calls C++."""
    return frame.f_code.co_name == RUN_BACKWARD.name
