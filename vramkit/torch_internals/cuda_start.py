"""The moment at which torch begins to use CUDA in a process. Knows what torch calls then; asks CUDA nothing."""

from __future__ import annotations

from collections.abc import Callable

from .names import place_of

_START = place_of("torch.cuda._lazy_init", "run")
"""C++ calls it by this name at the first use, and so does all of ``torch.cuda``."""


def around_start(before: Callable[[], object], after: Callable[[], object]) -> None:
    """Call something just before CUDA begins in this process, or in a fork of it, and something when it has begun.

    Each once. Until then no context is there, and forks of the process are free to use CUDA.
    """
    original = vars(_START.owner)[_START.name]

    def start() -> None:
        setattr(_START.owner, _START.name, original)
        try:
            before()
            original()
        except BaseException:
            setattr(_START.owner, _START.name, start)
            raise
        after()

    setattr(_START.owner, _START.name, start)
