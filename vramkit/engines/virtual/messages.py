"""What the process of the user and its helper say to each other. Knows the words and their pickles; knows no torch."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from multiprocessing.connection import Connection

from ...gpus import GPU
from ...programs.failed import Failed
from ...ranks.place import Place
from .. import Run


@dataclass(frozen=True, kw_only=True)
class Open:
    """Begin a session: the first thing that is said on its pipe."""

    parcel: bytes
    """A program, by value."""
    gpu: GPU
    environment: dict[str, str]
    folder: str
    """The current one."""
    path: list[str]
    """``sys.path``."""
    settings: dict[str, object]
    """Of torch, by dotted name."""
    place: Place | None = None
    """The rank that the program is in a distributed job."""
    unpack_late: bool = False
    """Open the parcel in every run anew, and not once before them."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Run the session's program."""

    batch_size: int
    unlimited: bool
    detailed: bool
    move_batch: bool = False
    counts_layers: bool = False
    """One step, in which the layers are counted, and not their memory."""


@dataclass(frozen=True, kw_only=True)
class UsesCuda:
    """What the parcel needs has begun to use CUDA as soon as it was imported: no run could be forked from there."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The process that ran the program ended without an answer."""

    status: int
    """As ``os.waitstatus_to_exitcode`` gives it: negative for a signal."""


Answer = Run | Failed | UsesCuda | Ended | None
"""None: the session is open."""


def send(to: Connection, message: object) -> None:
    """Say something; ``recv()`` hears it. Raises: OSError if nobody is there."""
    # Not to.send(message): its pickles are of an older protocol, which copies tables, and torch adds to its reducers.
    to.send_bytes(pickle.dumps(message, protocol=5))
