"""What a page has a tab for: a device, a rank of a job, a process. Knows results, and not where they are from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...tape.memory import MemoryResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Tabs:
    """The tabs of a page, in their order, behind an overview of all."""

    kind: str
    """What each is, as one word: "device", "rank", "process"."""
    of: Sequence[tuple[str, MemoryResult]]
    """The name of each, and the result of one device."""


def tabs_of(result: MemoryResult) -> Tabs:
    """A tab for each device of a result."""
    return Tabs(kind="device", of=[(each.device, each) for each in result.each_device()])
