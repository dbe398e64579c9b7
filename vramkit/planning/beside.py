"""Several runs at a time, where an engine's runs are processes of their own. Knows threads; runs nothing itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_MOST = 4
"""Each run is a process with torch and the program in it, of some hundred megabytes."""


def processors() -> int:
    """How many runs this process may have at a time."""
    return min(_MOST, len(os.sched_getaffinity(0)))


def beside(count: int, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """What a function says of each of some things, in their order; of up to ``count`` of them at the same time."""
    given = list(items)
    if min(count, len(given)) < 2:
        return [function(each) for each in given]
    threads = ThreadPoolExecutor(count)
    try:
        return list(threads.map(function, given))
    finally:
        threads.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C nobody waits for the others
