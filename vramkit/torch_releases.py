"""What follows from torch's version number alone: the oldest that will do, and how its allocator breaks ties.

Imports no torch, so that the allocator's rooms can ask. What can be probed instead, `vramkit.torch_internals` probes.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from importlib import metadata
from typing import Literal

from .errors import DeviceError

TieBreak = Literal["age", "address"]
"""Which of equally large free blocks torch's allocator takes."""

OLDEST = (2, 8)
"""The oldest torch that will do: of those before it, wheels come with a cuDNN that the virtual GPU can't plan with."""

_NEAREST = (2, 13)  # 2.14.1 does, 2.12.1 and older ones don't, as measured; 2.13 is assumed to
_FROM_NEXT = (2, 10)  # 2.11.0 does, 2.9.1 and 2.8.0 don't, as measured; 2.10 is taken for 2.11
_AGE = (2, 12)  # pytorch pull request 183591, measured with 2.12.1; 2.11 and older by address


def release_of(version: str) -> tuple[int, int]:
    """The first two numbers of a version, ``"2.14.1+cu130"`` say; of what is none, a release that is newer than all."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (sys.maxsize, 0)


def check(asked: str, version: str) -> None:
    """Make sure that a torch is not too old.

    Args:
        asked: what was asked for, as an error's text begins.
        version: torch's.

    Raises:
        DeviceError: it is.
    """
    if release_of(version) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise DeviceError(
            asked,
            f"this is torch {version}",
            f"It needs torch {oldest} or newer",
            f"Install one: pip install 'torch>={oldest}'",
        )


def tie_break_of(version: str) -> TieBreak:
    """How a torch's allocator breaks ties."""
    return "age" if release_of(version) >= _AGE else "address"


def installed_tie_break() -> TieBreak:
    """How the torch of this process breaks ties; where there is none, as the newest does."""
    return tie_break_of(installed())


def rounds_limit() -> bool:
    """Whether the torch of this process takes part of a memory to the nearest byte; older ones cut it off."""
    return release_of(installed()) >= _NEAREST


def steps_from_next() -> bool:
    """Whether the torch of this process spares the last size named in ``roundup_power2_divisions:[8:4,>:2]``.

    In older ones what stands for all that is larger holds for that size, too.
    """
    return release_of(installed()) >= _FROM_NEXT


def installed() -> str:
    """The version of the torch that is imported, or would be; empty: there is none."""
    torch = sys.modules.get("torch")
    return _found() if torch is None else str(vars(torch).get("__version__", ""))


@cache
def _found() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""
