"""The ranks of a distributed job as one table: what each held at most, the fullest first. Knows no process but its
profile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np

from ..sizes import format_size
from ..tape.events import Category, Phase
from ..tape.memory import MemoryResult
from .processes import Process

_SHOWN = 16
_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""What torch reads its allocator's settings from: the newer one first."""


def overview(ranks: Sequence[Process]) -> str:
    """A table of ranks, above the report of the first of them.

    Args:
        ranks: that were played, the fullest first; at least one.
    """
    return "\n".join(_lines(ranks))


def _lines(ranks: Sequence[Process]) -> Iterator[str]:
    first = ranks[0]
    assert first.profile is not None
    count = "1 rank" if len(ranks) == 1 else f"{len(ranks)} ranks"
    yield f"vramkit: {count} of a job of {first.world_size:,}, the fullest first"
    yield f"torch {first.profile.versions.get('torch', '')}, allocator settings: {_settings()}"
    yield ""
    yield "    rank     allocated          reserved            used on the device   steps"
    shown = list(ranks) if len(ranks) <= _SHOWN else [*ranks[: _SHOWN - 1], ranks[-1]]
    for each in shown:
        if each is ranks[-1] and len(shown) < len(ranks):
            yield f"     ...     {len(ranks) - len(shown)} more, between these"
        yield _line(each)
    most, least = _reserved(ranks[0]), _reserved(ranks[-1])
    if len(ranks) > 1:
        yield f"The fullest reserved {format_size(most - least)} more than the emptiest."
    yield f"The report of rank {first.rank} follows."


def _line(process: Process) -> str:
    profile = process.profile
    assert profile is not None
    fullest = max(profile.each_device(), key=lambda each: each.peak_reserved)
    used = fullest.peak_reserved + fullest.peak.outside
    share = f"{used / fullest.capacity:.1%}" if fullest.capacity else ""
    sizes = f"{format_size(fullest.peak_allocated):>14}{format_size(fullest.peak_reserved):>18}"
    return f"{process.rank:>8,}{sizes}{format_size(used):>18} {share:>11}{len(fullest.steps):>8}"


def _reserved(process: Process) -> int:
    assert process.profile is not None
    return max(each.peak_reserved for each in process.profile.each_device())


def _settings() -> str:
    given = [f"{name}={os.environ[name]}" for name in _SETTINGS if os.environ.get(name)]
    return given[0] if given else "torch's defaults"


def note_of_buckets(result: MemoryResult) -> str:
    """What a result says of buffers that NCCL's watchdog lets go, such as DDP's first buckets; empty: it has none.

    Args:
        result: of a rank on virtual GPUs.
    """
    tape = result.tape
    backward = np.flatnonzero(tape.events["phase"] == Phase.BACKWARD)
    if not len(backward):
        return ""
    table = tape.allocations
    held = (table["category"] == Category.COMMUNICATION) & (table["born"] < backward[0]) & (table["died"] > backward[0])
    size = int(table["requested"][held].sum())
    if not size:
        return ""
    return (
        f"DDP's first buckets ({format_size(size)}) are gone before the second step. On a card NCCL's watchdog lets "
        "them go up to 0.1 s after their collectives: while it has not, there is so much more."
    )
