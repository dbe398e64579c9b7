"""Where fakes take another operator than real tensors would: which one is right. Knows autograd's nodes by name.

Under a dispatch mode autograd avoids operators that work in place, because a subclass might not support them.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from ...torch_internals.autograd import current_node, graph_task, runs_backward
from ...torch_internals.dispatch import TorchDispatchMode, without_modes
from ...torch_internals.fakes import FakeTensorMode, is_dense
from ...torch_internals.storages import use_counts

aten = torch.ops.aten
Corrected = tuple[Any, tuple[Any, ...], dict[str, Any]]


class _Thread(threading.local):
    adds_in_place = False

    def __init__(self) -> None:
        self.asked: list[weakref.ref[torch.Tensor]] = []


_thread = _Thread()
autograd_asks = False
"""Whether autograd asks for the devices of gradients: it does beside a device, and under the overlay it does not."""


def adding_in_place(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A function of torch's that adds to its own product in place: ``linear`` a bias, attention a mask."""

    def function(*args: Any, **kwargs: Any) -> torch.Tensor:
        _thread.adds_in_place = True
        try:
            return original(*args, **kwargs)
        finally:
            _thread.adds_in_place = False

    return function


def one_hot_of(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``torch.nn.functional.one_hot``, which on fakes compares with every class; here, as on CUDA, it writes ones."""

    def one_hot(tensor: torch.Tensor, num_classes: int = -1) -> torch.Tensor:
        if num_classes < 0 or tensor.device.type != "cuda" or tensor.dtype is not torch.int64:
            return original(tensor, num_classes)
        return tensor.new_zeros((*tensor.shape, num_classes)).scatter_(-1, tensor.unsqueeze(-1), 1)

    return one_hot


_ADD_IN_PLACE = {"torch::autograd::AccumulateGrad", "AminmaxBackward0"}
_ADD_THEMSELVES = {"Atan2Backward0", "StdMeanBackward0", "VarMeanBackward0", "XlogyBackward0"}
"""Nodes whose formulas add two tensors, and make a new one."""


def note_device_question(tensor: torch.Tensor) -> None:
    """Remember that torch asked for a tensor's device: autograd does of each gradient that a node has given."""
    _thread.asked.append(weakref.ref(tensor))


def forget_device_questions(operator: Any) -> None:
    """An operator runs, so that nothing that a node gives after it has been asked for its device yet."""
    if operator is not aten.add_.Tensor and _thread.asked:
        _thread.asked.clear()


def _is_given_by_a_node(node: Any, tensor: torch.Tensor) -> bool:
    if not autograd_asks:
        return node is None or node.name() not in _ADD_THEMSELVES
    return any(ref() is tensor for ref in _thread.asked)


def _add(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Corrected:
    """Autograd adds gradients that meet: to a parameter's own in its ``AccumulateGrad``, others after a node has run.

    The second is told by that no Python called it, that autograd alone holds the sum so far, and that it has looked at
    what is added: what a node's own formula adds, it has not.
    """
    if _thread.adds_in_place:
        # Under vmap a bias has a dimension more than the product, and is added to no place of it.
        fits = not isinstance(args[1], torch.Tensor) or _broadcasts_to(args[1].shape, args[0].shape)
        return (aten.add_.Tensor if fits else func), args, kwargs
    if graph_task() < 0 or torch.is_grad_enabled() or not isinstance(args[1], torch.Tensor):
        return func, args, kwargs
    node = current_node()
    accumulates = node is not None and node.name() in _ADD_IN_PLACE
    if accumulates or (
        _is_called_by_autograd()
        and _is_given_by_a_node(node, args[1])
        and _is_dense(args[0])
        and use_counts(args[0]) == counts_of_the_only_holder()
    ):
        return aten.add_.Tensor, args, kwargs
    return func, args, kwargs


def _broadcasts_to(shape: torch.Size, other: torch.Size) -> bool:
    return bool(torch.broadcast_shapes(shape, other) == other)  # type: ignore[no-untyped-call] # torch's


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether every element has its own place, without gaps: autograd writes to no other."""
    return tensor.is_contiguous() or is_dense(tensor)


def _is_called_by_autograd() -> bool:
    frame = inspect.currentframe()
    for _ in range(3):  # through the correction and the mode, to whatever called that: nothing in autograd's thread
        frame = frame and frame.f_back
    return frame is None or runs_backward(frame)


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
            if func is aten.add.Tensor and graph_task() >= 0:
                seen.append(use_counts(args[0]))
            return func(*args, **kwargs)

    with without_modes(), FakeTensorMode(), torch.enable_grad():
        x = torch.ones(2, requires_grad=True)
        y = x * 1
        z = (y * 2 + y * 3).sum()
        with Look():  # type: ignore[no-untyped-call] # torch's
            torch.autograd.grad(z, x)
    return seen[0]


def _in_place(
    operator: Any, *, but: frozenset[str] = frozenset(), only: frozenset[str] = frozenset()
) -> Callable[..., Corrected]:
    """The form that works in place, in formulas of autograd's nodes.

    Args:
        operator: that form.
        but: in formulas of these nodes it is not taken.
        only: it is taken in formulas of these alone; none: in all.
    """

    def correct(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Corrected:
        node = current_node() if graph_task() >= 0 else None
        if node is None or torch.is_grad_enabled() or not _is_called_by_autograd():
            return func, args, kwargs
        name = node.name()
        if (
            name in but
            or (only and name not in only)
            or (func is aten.mul.Tensor and args[0].numel() < args[1].numel())
        ):
            return func, args, kwargs
        return operator, args, kwargs

    return correct


def _in_single_precision(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Corrected:
    """Sums of ``renorm``'s backward, which only a tensor on CUDA has in single precision: under the overlay C++ sees
    none."""
    if kwargs.get("dtype") is torch.float64 and args[0].dtype is torch.float32 and _runs_in("RenormBackward0"):
        return func, args, {**kwargs, "dtype": torch.float32}
    return func, args, kwargs


def _runs_in(name: str) -> bool:
    node = current_node() if graph_task() >= 0 else None
    return node is not None and bool(node.name() == name)


_REDUCED = frozenset({"ScatterReduceBackward0", "IndexReduceBackward0"})
_LOGITS = frozenset({"BinaryCrossEntropyWithLogitsBackward0"})
_EXTREMES = frozenset({"MaxBackward1", "MinBackward1", "MedianBackward0", "NanmedianBackward0"})

CORRECTIONS: dict[Any, Callable[[Any, tuple[Any, ...], dict[str, Any]], Corrected]] = {
    aten.add.Tensor: _add,
    aten.sub.Tensor: _in_place(aten.sub_.Tensor, only=_LOGITS),
    aten.mul.Tensor: _in_place(aten.mul_.Tensor, only=_LOGITS),
    aten.logical_and.default: _in_place(aten.logical_and_.default, only=_EXTREMES),
    aten.scatter_add.default: _in_place(aten.scatter_add_.default, but=_REDUCED),
    aten.scatter.src: _in_place(aten.scatter_.src),
    aten.index_add.default: _in_place(aten.index_add_.default, but=_REDUCED),
    aten.index_put.default: _in_place(aten.index_put_.default, but=frozenset({"IndexPutBackward0"})),
    aten.put.default: _in_place(aten.put_.default, only=frozenset({"TakeBackward0"})),
    aten.masked_fill.Scalar: _in_place(
        aten.masked_fill_.Scalar,
        but=_REDUCED | {"MaskedFillBackward0", "MaskedScatterBackward0", "XlogyBackward0"},
    ),
    aten.linalg_vector_norm.default: _in_single_precision,
    aten.sum.dim_IntList: _in_single_precision,
}


def taken_apart(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a composite operator gives, by its parts; NotImplemented: it is none."""
    if func is aten.dropout.default:
        tensor, p, train = args
        if not (train and p):
            return tensor  # torch 2.13 has a decomposition of its own, which makes a copy
    return func.decompose(*args, **kwargs)
