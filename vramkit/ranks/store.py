"""A store in which some ranks of a job are, and their mirrors. Knows torch's stores; knows no collective."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlparse

from torch.distributed import Store  # type: ignore[attr-defined] # which it has

from ..errors import UsageError

# NCCL's ids, which the stand-in does not look at: the number of a communicator, or the two ranks that it joins.
_OF_A_COMMUNICATOR = re.compile(r"(^|/)(\d+(:\d+)?|UniqueNCCLID:\S*)$")
_ID_BYTES = 128
_LOOK = 0.01  # seconds between two looks for a value of another rank
PATIENCE = 300.0
"""Seconds for which a value of another rank is waited for. torch waits as long."""


class MirrorStore(Store):
    """A store without absent ranks: whoever waits for one has waited, and a count has been made by every rank.

    Args:
        world_size: ranks that count.
        shared: where other ranks that are played write their values, too; None: this one is alone.
        patience: seconds for which a value of theirs is waited for.
    """

    def __init__(self, world_size: int, shared: Store | None = None, *, patience: float = PATIENCE) -> None:
        super().__init__()
        self._world_size = world_size
        self._values: dict[str, bytes] = {}
        self._shared: Any = shared  # torch's stores take bytes, and their stubs do not say so
        self._patience = patience

    def clone(self) -> MirrorStore:
        """This store."""
        return self

    def set(self, key: str, value: str | bytes) -> None:
        """Write a value."""
        self._values[key] = value if isinstance(value, bytes) else str(value).encode()
        if self._shared is not None:
            self._shared.set(key, self._values[key])

    def get(self, key: str) -> bytes:
        """A value that a rank wrote which is played, or an id of a communicator.

        Raises:
            UsageError: an absent rank would have written it.
        """
        if key in self._values:
            return self._values[key]
        if _OF_A_COMMUNICATOR.search(key):
            return bytes(_ID_BYTES)
        asked = f"The value of {key!r} was asked for in the job's store"
        if self._shared is None:
            raise absent(asked, "which another rank writes")
        deadline = time.monotonic() + self._patience
        while not self._shared.check([key]):  # not by one long wait: NCCL's watchdog looks into the store, too
            if time.monotonic() > deadline:
                raise absent(asked, f"which no rank that is played has written in {self._patience:.0f} s")
            time.sleep(_LOOK)
        return bytes(self._shared.get(key))

    def add(self, key: str, amount: int) -> int:
        """Add to a number, for every rank."""
        total = int(self._values.get(key, b"0")) + amount * self._world_size
        self._values[key] = str(total).encode()
        return total

    def append(self, key: str, value: str | bytes) -> None:
        """Write behind a value."""
        self.set(key, self._values.get(key, b"") + (value if isinstance(value, bytes) else value.encode()))

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        """Write a value where another is, or none; returns what is there then."""
        before = expected if isinstance(expected, bytes) else expected.encode()
        if self._values.get(key, before) == before:
            self.set(key, desired)
        return self._values[key]

    def delete_key(self, key: str) -> bool:
        """Remove a value."""
        return self._values.pop(key, None) is not None

    def check(self, keys: Sequence[str]) -> bool:
        """Whether they have all been written: what absent ranks say is that nothing went wrong."""
        others = [key for key in keys if key not in self._values]
        return not others or (self._shared is not None and bool(self._shared.check(others)))

    def num_keys(self) -> int:
        """How many values there are."""
        return len(self._values)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Every rank is as far as this one."""

    def set_timeout(self, timeout: timedelta) -> None:
        """Nothing takes time."""

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Several values."""
        return [self.get(key) for key in keys]

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        """Write several values."""
        for key, value in zip(keys, values, strict=True):
            self.set(key, value)

    def has_extended_api(self) -> bool:
        """Whether it does what few programs ask for."""
        return True


class Meeting:
    """Finds the other ranks of a job at once: they are mirrors, or write into a file that is shared.

    Args:
        world_size: of the job.
        shared: see `MirrorStore`.
    """

    def __init__(self, world_size: int, shared: Store | None = None) -> None:
        self._world_size = world_size
        self._store = MirrorStore(world_size, shared)

    def __call__(self, url: str, *args: object, **kwargs: object) -> Iterator[tuple[Any, int, int]]:
        """What a rendezvous comes to: a store, a rank, and how many there are.

        Raises:
            UsageError: the job has another number of ranks.
        """
        query = parse_qs(urlparse(url).query)
        rank, size = (
            int(query[name][0] if name in query else os.environ[variable])
            for name, variable in (("rank", "RANK"), ("world_size", "WORLD_SIZE"))
        )
        if size != self._world_size:
            raise UsageError(
                f"torch.distributed was to begin with {size:,} ranks",
                f"in a job of {self._world_size:,}",
                instead=f"Play a job of as many: --world-size {size}",
            )
        yield self._store, rank, size


def absent(asked: str, found: str, ranks: Sequence[int] = ()) -> UsageError:
    """The error for what only an absent rank knows.

    Args:
        asked: what was asked for, as an error's text begins.
        found: what is there instead.
        ranks: of the job, who would have to be there; empty: who knows.
    """
    these = f"--ranks {','.join(map(str, sorted(ranks)))}, or all of them, " if ranks else "all ranks, "
    return UsageError(
        asked,
        found,
        "Of a rank that is not played only the sizes of what it sends are known",
        f"Play {these}a process each: --ranks all; or torchrun ... -m vramkit run ...",
    )
