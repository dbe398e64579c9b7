"""A store in which one rank is, and its mirrors. Knows torch's stores; knows no collective."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlparse

from torch.distributed import Store  # type: ignore[attr-defined] # which it has

from ..errors import UsageError

# NCCL's ids, which the stand-in does not look at: the number of a communicator, or the two ranks that it joins.
_OF_A_COMMUNICATOR = re.compile(r"(^|/)(\d+(:\d+)?|UniqueNCCLID:\S*)$")
_ID_BYTES = 128


class MirrorStore(Store):
    """A store that nobody else writes to: whoever waits in it has waited, and a count has been made by every rank.

    Args:
        world_size: ranks that count.
    """

    def __init__(self, world_size: int) -> None:
        super().__init__()
        self._world_size = world_size
        self._values: dict[str, bytes] = {}

    def clone(self) -> MirrorStore:
        """This store."""
        return self

    def set(self, key: str, value: str | bytes) -> None:
        """Write a value."""
        self._values[key] = value if isinstance(value, bytes) else str(value).encode()

    def get(self, key: str) -> bytes:
        """A value that this rank wrote, or an id of a communicator.

        Raises:
            UsageError: an absent rank would have written it.
        """
        if key not in self._values and _OF_A_COMMUNICATOR.search(key):
            return bytes(_ID_BYTES)
        if key not in self._values:
            raise absent(f"The value of {key!r} was asked for in the job's store", "which another rank writes")
        return self._values[key]

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
        """Whether this rank has written them all: what absent ranks say is that nothing went wrong."""
        return all(key in self._values for key in keys)

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
    """Finds the other ranks of a job at once: they are mirrors.

    Args:
        world_size: of the job.
    """

    def __init__(self, world_size: int) -> None:
        self._store = MirrorStore(world_size)

    def __call__(self, url: str, *args: object, **kwargs: object) -> Iterator[tuple[Any, int, int]]:
        """What a rendezvous comes to: a store, a rank, and how many there are."""
        query = parse_qs(urlparse(url).query)
        rank, size = (
            int(query[name][0] if name in query else os.environ[variable])
            for name, variable in (("rank", "RANK"), ("world_size", "WORLD_SIZE"))
        )
        yield self._store, rank, size


def absent(asked: str, found: str) -> UsageError:
    """The error for what only an absent rank knows.

    Args:
        asked: what was asked for, as an error's text begins.
        found: what is there instead.
    """
    return UsageError(
        asked,
        found,
        "This rank is played alone: of the others only the sizes of what they send are known",
        "Play all ranks, a process each: --ranks all; or torchrun ... -m vramkit run ...",
    )
