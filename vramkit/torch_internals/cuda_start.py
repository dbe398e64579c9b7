"""The moment at which torch begins to use CUDA in a process. Knows what torch calls then; asks CUDA nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable

from .names import place_of

_START = place_of("torch.cuda._lazy_init", "run")
"""C++ calls it by this name at the first use, and so does all of ``torch.cuda``, some of it by a name of its own."""


def around_start(before: Callable[[], object], after: Callable[[], object]) -> None:
    """Call something just before CUDA begins in this process, or in a fork of it, and something when it has begun.

    Each once. Until then no context is there, and forks of the process are free to use CUDA.
    """
    original = vars(_START.owner)[_START.name]
    modules = [each for name, each in sys.modules.items() if name.startswith(f"{_START.owner.__name__}.")]
    places = [_START.owner, *(each for each in modules if vars(each).get(_START.name) is original)]

    def put(function: Callable[[], object]) -> None:
        for each in places:
            setattr(each, _START.name, function)

    def start() -> None:
        put(original)
        try:
            before()
            original()
        except BaseException:
            put(start)
            raise
        after()

    put(start)
