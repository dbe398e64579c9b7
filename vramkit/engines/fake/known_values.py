"""Values of integers and flags on the device, as far as they come of the host's: ids, masks, positions, lengths.

A known tensor has a twin on the host. What an operator makes of known tensors alone is made of their twins too, views
of views, so that what is written in place shows in all of them. It knows torch's schemas, and no kernel.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import torch

from ...torch_internals.dispatch import below_python
from ...torch_internals.fakes import FakeTensor
from ...torch_internals.operators import schema_of
from ...torch_internals.storages import key_of
from ...virtual_gpu.values.hook import SMALL_INTEGERS

_SEEDED = torch.Tag.nondeterministic_seeded


class KnownValues:
    """The twins of a run's tensors."""

    def __init__(self) -> None:
        self._twins: dict[int, tuple[weakref.ref[torch.Tensor], int, torch.Tensor]] = {}  # and the storage, by its key

    def of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """A tensor's twin; None: its values are not known."""
        ref, key, twin = self._twins.get(id(tensor), (None, 0, None))
        if ref is None or twin is None or ref() is not tensor or key_of(tensor.untyped_storage()) != key:
            return None
        return twin if twin.numel() == 0 or twin.untyped_storage().nbytes() else None  # else it was forgotten

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Do with the twins what an operator has just done with fakes.

        Args:
            func: an overload of torch's.
            args: its arguments, fakes among them.
            kwargs: those that have a name.
            result: what it gave.
        """
        if not hasattr(func, "is_view"):  # an operator of a higher order, whose parts come by themselves
            return
        results = (result,) if isinstance(result, torch.Tensor) else result
        if isinstance(results, (tuple, list)) and results and all(map(_is_whole, results)):
            try:
                made = self._made(func, args, kwargs, results)
            except Exception:  # of a kernel, about values that make no sense: then they are not known
                made = None
            if made is not None:
                for each, twin in zip(results, [made] if isinstance(result, torch.Tensor) else made, strict=True):
                    self._remember(each, twin)
                return
        if self._twins:
            for position, name in _written(func):
                self._forget(args[position] if position < len(args) else kwargs.get(name))

    def _made(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], results: Iterable[torch.Tensor]) -> Any:
        if _SEEDED in func.tags or "empty" in func.__name__:
            return None
        if not func.is_view and any(each.numel() * each.element_size() > SMALL_INTEGERS for each in results):
            return None
        for tensor in _tensors((*args, *kwargs.values())):
            if isinstance(tensor, FakeTensor) and self.of(tensor) is None:
                return None
        given = {name: self._known(value) for name, value in kwargs.items()}
        if given.get("device") is not None:
            given["device"] = torch.device("cpu")
        with below_python(), torch.no_grad():
            return func(*map(self._known, args), **given)

    def _known(self, value: Any) -> Any:
        if isinstance(value, FakeTensor):
            return self.of(value)
        return [self._known(each) for each in value] if isinstance(value, (list, tuple)) else value

    def _remember(self, tensor: torch.Tensor, twin: torch.Tensor) -> None:
        number, twins = id(tensor), self._twins

        def drop(ref: object) -> None:
            if number in twins and twins[number][0] is ref:
                del twins[number]

        if twin.shape == tensor.shape and twin.dtype == tensor.dtype:
            twins[number] = (weakref.ref(tensor, drop), key_of(tensor.untyped_storage()), twin)

    def _forget(self, written: Any) -> None:
        for tensor in _tensors((written,)):
            if (twin := self.of(tensor)) is not None:
                twin.untyped_storage().resize_(0)  # which all views of it see


def _is_whole(result: Any) -> bool:
    return isinstance(result, FakeTensor) and not (result.dtype.is_floating_point or result.dtype.is_complex)


@cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """Position and name of what may be written to from then on: of what a view without a twin looks at, too."""
    arguments = enumerate(schema_of(func).arguments)
    return tuple(
        (i, each.name) for i, each in arguments if each.alias_info and (func.is_view or each.alias_info.is_write)
    )


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
