"""Where fakes take another operator than real tensors would: which one is right. Knows autograd's nodes by name.

Under a dispatch mode autograd avoids operators that work in place, because a subclass might not support them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch._prims_common import is_non_overlapping_and_dense_or_false
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

aten = torch.ops.aten
Corrected = tuple[Any, tuple[Any, ...], dict[str, Any]]


class _Thread(threading.local):
    in_linear = False


_thread = _Thread()


def linear_of(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``torch.nn.functional.linear``, which adds the bias in place where it can't multiply and add at once."""

    def linear(*args: Any, **kwargs: Any) -> torch.Tensor:
        _thread.in_linear = True
        try:
            return original(*args, **kwargs)
        finally:
            _thread.in_linear = False

    return linear


def _add(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Corrected:
    """Autograd adds gradients that meet: to a parameter's own in its ``AccumulateGrad``, others after a node has run.

    The second is told by that no Python called it and that autograd alone holds the sum so far. Wrong for a node whose
    own formula, in C++, adds two tensors and needs the first one no more.
    """
    if _thread.in_linear:
        return aten.add_.Tensor, args, kwargs
    if torch._C._current_graph_task_id() < 0 or torch.is_grad_enabled() or not isinstance(args[1], torch.Tensor):
        return func, args, kwargs
    node = torch._C._current_autograd_node()
    accumulates = node is not None and node.name() == "torch::autograd::AccumulateGrad"
    if accumulates or (
        _is_called_by_autograd() and _is_dense(args[0]) and _counts(args[0]) == counts_of_the_only_holder()
    ):
        return aten.add_.Tensor, args, kwargs
    return func, args, kwargs


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether every element has its own place, without gaps: autograd writes to no other."""
    return tensor.is_contiguous() or bool(is_non_overlapping_and_dense_or_false(tensor))


def _is_called_by_autograd() -> bool:
    frame: Any = sys._getframe(2).f_back  # of whatever called the mode; none in a thread of autograd
    return frame is None or frame.f_code.co_name == "_engine_run_backward"


def _counts(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor._use_count(), torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)  # type: ignore[attr-defined]


@cache
def counts_of_the_only_holder() -> tuple[int, int]:
    """How many hold a sum that autograd alone holds, as seen from a mode: found out once, on a sum of that kind.

    To be called before any backward runs.
    """
    seen = []

    class Look(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return self.look(func, args, kwargs or {})

        def look(self, func: Any, args: Any, kwargs: Any) -> Any:
            if func is aten.add.Tensor and torch._C._current_graph_task_id() >= 0:
                seen.append(_counts(args[0]))
            return func(*args, **kwargs)

    with _disable_current_modes(), FakeTensorMode(), torch.enable_grad():
        x = torch.ones(2, requires_grad=True)
        y = x * 1
        z = (y * 2 + y * 3).sum()
        with Look():  # type: ignore[no-untyped-call] # torch's
            torch.autograd.grad(z, x)
    return seen[0]


def _in_place(operator: Any, *, but: str = "") -> Callable[..., Corrected]:
    """The form that works in place, in formulas of autograd's nodes, ``but`` in that of one."""

    def correct(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Corrected:
        node = torch._C._current_autograd_node() if torch._C._current_graph_task_id() >= 0 else None
        if node is None or torch.is_grad_enabled() or node.name() == but or not _is_called_by_autograd():
            return func, args, kwargs
        return operator, args, kwargs

    return correct


CORRECTIONS: dict[Any, Callable[[Any, tuple[Any, ...], dict[str, Any]], Corrected]] = {
    aten.add.Tensor: _add,
    aten.scatter_add.default: _in_place(aten.scatter_add_.default),
    aten.scatter.src: _in_place(aten.scatter_.src),
    aten.index_add.default: _in_place(aten.index_add_.default),
    aten.index_put.default: _in_place(aten.index_put_.default),
    aten.masked_fill.Scalar: _in_place(aten.masked_fill_.Scalar, but="MaskedFillBackward0"),
}


def taken_apart(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a composite operator gives, by its parts; NotImplemented: it is none."""
    if func is aten.dropout.default:
        tensor, p, train = args
        if not (train and p):
            return tensor  # torch 2.13 has a decomposition of its own, which makes a copy
    return func.decompose(*args, **kwargs)
