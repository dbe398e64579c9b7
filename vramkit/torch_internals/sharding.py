"""torch's private names of sharded training (FSDP): where whole parameters are gathered, and gradients reduced.

Each is looked up once its module is there, for only programs that shard import it; without a name, nothing is told.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch

_SHARDS = "torch.distributed.fsdp._fully_shard._fsdp_param_group"
_FLAT = "torch.distributed.fsdp._flat_param"

Gathered = Callable[[list[tuple[torch.Tensor, torch.Tensor]]], object]
"""Takes pairs of a sharded parameter and a whole one, or its gradient."""

_parameters: weakref.WeakSet[Any] = weakref.WeakSet()
"""FSDP2's own, of all parameters that were gathered while somebody looked."""


def shards() -> dict[int, torch.Tensor]:
    """The shards of parameters, by the ids of the whole ones that take their places in modules for a while."""
    pairs = ((getattr(each, "_unsharded_param", None), getattr(each, "sharded_param", None)) for each in _parameters)
    return {id(whole): shard for whole, shard in pairs if whole is not None and shard is not None}


class Sharding:
    """Tells where FSDP gathers parameters, and which whole gradients it reduces.

    Args:
        stack: puts torch's functions back.
        gathered: is told of whole parameters.
        reduced: is told of whole gradients.
    """

    def __init__(self, stack: ExitStack, gathered: Gathered, reduced: Gathered) -> None:
        self._stack = stack
        self._gathered = gathered
        self._reduced = reduced
        self._waits_for = {_SHARDS: self._watch_shards, _FLAT: self._watch_flat}

    def look(self) -> None:
        """Begin with what has been imported meanwhile."""
        for name in list(self._waits_for):  # another thread may look, too: each is begun with once
            if name in sys.modules and (watch := self._waits_for.pop(name, None)) is not None:
                watch(sys.modules[name])

    def _watch_shards(self, module: Any) -> None:
        def of_copy_out(original: Callable[..., Any]) -> Callable[..., Any]:
            def foreach_all_gather_copy_out(result: Any, parameters: list[Any], *args: Any, **kwargs: Any) -> Any:
                made = original(result, parameters, *args, **kwargs)
                _parameters.update(parameters)
                self._gathered(list(_whole(parameters)))
                return made

            return foreach_all_gather_copy_out

        def of_reduce(original: Callable[..., Any]) -> Callable[..., Any]:
            def foreach_reduce(parameters: list[Any], gradients: list[Any], *args: Any, **kwargs: Any) -> Any:
                # The list owns them, and is emptied to let them go.
                shards = [getattr(each, "sharded_param", None) for each in parameters]
                pairs = zip(shards, gradients, strict=False)
                self._reduced([(shard, gradient) for shard, gradient in pairs if shard is not None])
                return original(parameters, gradients, *args, **kwargs)

            return foreach_reduce

        self._replace(module, "foreach_all_gather_copy_out", of_copy_out)
        self._replace(module, "foreach_reduce", of_reduce)

    def _watch_flat(self, module: Any) -> None:
        def of_use(original: Callable[..., Any]) -> Callable[..., Any]:
            def use(handle: Any, whole: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
                if whole is not handle.flat_param:  # else it is not sharded
                    self._gathered([(handle.flat_param, whole)])
                return original(handle, whole, *args, **kwargs)

            return use

        handle = getattr(module, "FlatParamHandle", None)
        if handle is not None:
            self._replace(handle, "_use_unsharded_flat_param", of_use)

    def _replace(self, owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        original = vars(owner).get(name)
        if original is not None:
            self._stack.callback(setattr, owner, name, original)
            setattr(owner, name, wrap(original))


def _whole(parameters: Iterable[Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for each in parameters:
        shard = getattr(each, "sharded_param", None)
        if shard is not None:
            yield from ((shard, tensor) for tensor in getattr(each, "all_gather_outputs", ()))
