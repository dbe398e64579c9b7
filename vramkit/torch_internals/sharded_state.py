"""torch's private names of what FSDP2 keeps about a model beside its parameters: which of them are whole, what is on
its way, and how it asks the other ranks. An interrupted step leaves that in the middle of its work.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_PACKAGE = "torch.distributed.fsdp._fully_shard"
_STATE = "_get_fsdp_state"  # of a module that `fully_shard` was given
_WHOLE = "_unsharded_param"  # of FSDP2's own object for a parameter
_COMMUNICATIONS = ("_all_gather_comm", "_reduce_scatter_comm")  # torch 2.9 on


class ShardedState:
    """FSDP2's state of models, as it was when this was made. Parameters that were whole are sharded first.

    Args:
        models: others than those of ``fully_shard`` have none.
    """

    def __init__(self, models: Iterable[torch.nn.Module]) -> None:
        self._models = [*models]
        self._shard()
        self._kept = [
            (held, held.copy())
            for each in _objects(self._models)
            for held in (vars(each), *(value for value in vars(each).values() if isinstance(value, (list, dict, set))))
        ]

    def put_back(self) -> None:
        """Set it as it was, also in the middle of a forward or a backward."""
        self._shard()
        for held, kept in self._kept:
            held.clear()
            (held.extend if isinstance(held, list) else held.update)(kept)

    def _shard(self) -> None:
        for each in _objects(self._models):
            whole = getattr(each, _WHOLE, None)
            if isinstance(whole, torch.Tensor):
                whole.grad = None
                each.to_sharded()


def offloads(model: torch.nn.Module) -> bool:
    """Whether FSDP2 keeps shards of a model in the machine's memory."""
    return any(getattr(each, "offload_to_cpu", False) for each in _objects([model]))


@contextmanager
def unheard(models: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Inside, FSDP2 takes what this rank has for what the others would send: none waits for another.

    Args:
        models: others than those of ``fully_shard`` are left alone, and so is an all-reduce among replicas. Up to torch
            2.8 all are.
    """
    with ExitStack() as stack:
        for each in _objects(models):
            for name, alone in zip(_COMMUNICATIONS, (_gathered, _scattered), strict=True):
                asks = getattr(each, name, None)
                if asks is not None:
                    stack.callback(setattr, each, name, asks)
                    setattr(each, name, _Alone(asks.allocate, alone))
        yield


class _Alone:
    """In the place of a collective of FSDP2's: the same memory, and the sizes of its results."""

    def __init__(self, allocate: Callable[..., torch.Tensor], make: Callable[[Any, Any, Any], None]) -> None:
        self.allocate = allocate
        self._make = make

    def __call__(self, output_tensor: Any, input_tensor: Any, group: Any, *_: object, **options: Any) -> object:
        self._make(output_tensor, input_tensor, group)
        return _DONE if options.get("async_op") else None


_DONE = object()  # nothing to wait for; None would say that it was not asynchronous


def _gathered(output: torch.Tensor, part: torch.Tensor, group: Any) -> None:
    """The same part from every rank: of 1,024 in ten copies."""
    size, whole = part.numel(), output.numel()
    if output.data_ptr() != part.data_ptr():
        output[:size].copy_(part)
    while size < whole:
        more = min(size, whole - size)
        output[size : size + more].copy_(output[:more])
        size += more


def _scattered(output: torch.Tensor, whole: torch.Tensor, group: Any) -> None:
    output.copy_(whole[group.rank() * output.numel() :][: output.numel()])


def _objects(models: Iterable[torch.nn.Module]) -> list[Any]:
    """FSDP2's own objects behind models: of a module, of a group of parameters, of each, and what they share."""
    states = [getattr(module, _STATE, None) for model in models for module in model.modules()]
    pending: list[Any] = [state() for state in states if state is not None]
    found: dict[int, Any] = {}
    while pending:
        each = pending.pop()
        if isinstance(each, (list, tuple, set)):
            pending += each
        elif isinstance(each, dict):
            pending += each.values()
        elif _is_own(each) and id(each) not in found:
            found[id(each)] = each
            pending += vars(each).values()
    return [*found.values()]


def _is_own(value: object) -> bool:
    kind = type(value)
    # The class that it gives to a module counts as its own, too.
    return kind.__module__.startswith(_PACKAGE) and not isinstance(value, (torch.nn.Module, enum.Enum))
