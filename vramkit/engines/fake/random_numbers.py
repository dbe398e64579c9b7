"""The host's random numbers of a run: its own, which begin where torch's were. Knows the generator of the CPU alone.

torch has one for all threads. A run that drew from it, or set it back afterwards, would change what others draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ...torch_internals.dispatch import TorchDispatchMode
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
    if _own is None or _SEEDED not in func.tags:
        return func(*args, **kwargs)
    # What another thread draws in this very moment is of the run's numbers: not every operator takes a generator.
    theirs = _THEIRS.get_state()
    _THEIRS.set_state(_own.get_state())
    try:
        return func(*args, **kwargs)
    finally:
        _own.set_state(_THEIRS.get_state())
        _THEIRS.set_state(theirs)


_own: torch.Generator | None = None


class OwnDraws(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's
    """While nothing records: objects may draw when they are sent, and when they arrive."""

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return draw(func, args, kwargs or {})
