"""Several runs at a time, where an engine's runs are processes of their own. Knows threads; runs nothing itself."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")

_MOST = 4
"""Each run is a process with torch and the program in it, of some hundred megabytes."""


def processors() -> int:
    """How many runs this process may have at a time."""
    return min(_MOST, len(os.sched_getaffinity(0)))


def beside(count: int, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """What a function says of each of some things, in their order; of up to ``count`` of them at the same time.

    After an error, or Ctrl-C, no other one is begun, and nobody waits for those that have.
    """
    given = list(items)
    if min(count, len(given)) < 2:
        return [function(each) for each in given]
    waiting = deque(enumerate(given))
    answers: SimpleQueue[tuple[int, R | None, BaseException | None]] = SimpleQueue()

    def work() -> None:
        with suppress(IndexError):
            while True:
                place, each = waiting.popleft()
                try:
                    answers.put((place, function(each), None))
                except BaseException as error:
                    waiting.clear()
                    answers.put((place, None, error))

    for _ in range(min(count, len(given))):
        threading.Thread(target=work, daemon=True).start()  # an executor's threads would be waited for at the exit
    found: dict[int, R] = {}
    try:
        while len(found) < len(given):
            place, answer, error = answers.get()
            if error is not None:
                raise error
            found[place] = cast(R, answer)
    finally:
        waiting.clear()
    return [found[place] for place in range(len(given))]
