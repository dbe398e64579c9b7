"""The host's random numbers of a run: its own, which begin where torch's were. Knows the generator of the CPU alone.

torch has one for all threads. A run that drew from it, or set it back afterwards, would change what others draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch

from ...torch_internals.dispatch import TorchDispatchMode
from ...torch_internals.operators import schema_of
from .overlay.patches import put

_THEIRS = torch.default_generator
_SEEDED = torch.Tag.nondeterministic_seeded


@contextmanager
def random_numbers() -> Iterator[None]:
    """Inside, functions of torch that seed, read or set the CPU's generator mean one of the run's own."""
    global _own
    before = _own
    _own = torch.Generator("cpu")
    _own.set_state(torch.default_generator.get_state())
    with ExitStack() as stack:
        for module in (torch, torch.random):
            put(stack, module, "default_generator", _own)
        try:
            yield
        finally:
            _own = before


def draw(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator for real on the host; numbers that it draws are the run's own."""
    if _own is None or _SEEDED not in func.tags or kwargs.get("generator") is not None:
        return func(*args, **kwargs)
    told = _told_the_generator(func)
    if told is not None:
        return told(*args, **{**kwargs, "generator": _own})
    # What another thread draws in this very moment is of the run's numbers.
    theirs = _THEIRS.get_state()
    _THEIRS.set_state(_own.get_state())
    try:
        return func(*args, **kwargs)
    finally:
        _own.set_state(_THEIRS.get_state())
        _THEIRS.set_state(theirs)


@cache
def _told_the_generator(operator: Any) -> Any | None:
    """The overload that takes the generator beside the same arguments; None: there is none."""
    names = _arguments(operator)
    if "generator" in names:
        return operator
    packet = operator.overloadpacket
    others = (getattr(packet, name) for name in packet.overloads())
    return next((each for each in others if {*_arguments(each)} == {*names, "generator"}), None)


def _arguments(operator: Any) -> list[str]:
    return [argument.name for argument in schema_of(operator).arguments]


_own: torch.Generator | None = None


class OwnDraws(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's
    """While nothing records: objects may draw when they are sent, and when they arrive."""

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return draw(func, args, kwargs or {})
