"""Prepares a process for being a rank on virtual GPUs. To be called once torch is there, before the program runs."""

from __future__ import annotations

from ..torch_internals.distributed import mirror_gloo, rendezvous_handlers, tell_splits
from ..torch_internals.needs import missing_for, require
from ..virtual_gpu import current
from .objects import Objects
from .settling import Settling
from .store import Meeting


def play(*, alone_of: int | None) -> None:
    """Let ``torch.distributed`` work in this process on virtual GPUs.

    Args:
        alone_of: the ranks of the job, if this one is alone and the others are its mirrors; None: they are all there.

    Raises:
        DeviceError: this torch lacks what it takes.
    """
    if alone_of is not None:
        require("A rank of a distributed job was to be played", "ranks")
    elif missing_for("ranks"):
        return  # a program that has only one is none the worse for it
    tell_splits(_tell_split)
    Objects(is_alone=alone_of is not None).install()
    Settling().install()
    if alone_of is not None:
        meeting = Meeting(alone_of)
        for scheme in ("env", "tcp", "file"):
            rendezvous_handlers[scheme] = meeting
        mirror_gloo()


def _tell_split(ranks: int) -> None:
    gpu = current()
    if gpu is not None:
        gpu.tell_split(ranks)
