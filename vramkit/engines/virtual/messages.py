"""What the process of the user and its helper say to each other, and how. Knows sockets and pickles; no torch."""

from __future__ import annotations

import os
import pickle
import socket
import struct
from dataclasses import dataclass
from typing import Any

from ...gpus import GPU
from ...programs.failed import Failed
from .. import Run

_LENGTH = struct.Struct("!Q")


@dataclass(frozen=True, kw_only=True)
class Open:
    """Begin a session: the first thing that is said on its socket."""

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
    unpack_late: bool = False
    """Open the parcel in every run anew, and not once before them."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Run the session's program."""

    batch_size: int
    unlimited: bool
    detailed: bool
    move_batch: bool


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


def send(to: socket.socket, message: object) -> None:
    """Say something. Raises: OSError if nobody is there."""
    send_bytes(to, pickle.dumps(message, protocol=5))


def send_bytes(to: socket.socket, content: bytes | memoryview) -> None:
    """Pass on what somebody else has pickled."""
    to.sendall(_LENGTH.pack(len(content)))
    to.sendall(content)


def receive(source: socket.socket) -> Any:
    """Wait for something. Raises: EOFError if nobody is there any more."""
    (length,) = _LENGTH.unpack(_exactly(source, _LENGTH.size))
    return pickle.loads(_exactly(source, length))


def _exactly(source: socket.socket, size: int) -> bytearray:
    content = bytearray(size)
    view, got = memoryview(content), 0
    while got < size:
        count = source.recv_into(view[got:])
        if not count:
            raise EOFError("the other process has gone")
        got += count
    return content


def read_all(descriptor: int) -> bytes:
    """What comes through a pipe until it is closed."""
    parts = []
    while part := os.read(descriptor, 1 << 20):
        parts.append(part)
    return b"".join(parts)
