"""Prepares a process for being a rank on virtual GPUs. To be called once torch is there, before the program runs."""

from __future__ import annotations

from torch.distributed import FileStore  # type: ignore[attr-defined] # which it has

from ..torch_internals.distributed import checkpoint_alone, mirror_gloo, rendezvous_handlers, tell_splits
from ..torch_internals.needs import missing_for, require
from ..virtual_gpu import current
from . import launchers
from .imports import when_imported
from .objects import Objects
from .place import Job
from .settling import Settling
from .store import Meeting


def play(job: Job | None, *, placed: bool) -> None:
    """Let ``torch.distributed`` work in this process on virtual GPUs.

    Args:
        job: of which some ranks are absent, and mirrors of those that are played; None: they are all there.
        placed: this process has a rank that no launcher gave it, so a launcher in it starts no others.

    Raises:
        DeviceError: this torch lacks what it takes.
    """
    if job is not None:
        require("A rank of a distributed job was to be played", "ranks")
    elif missing_for("ranks"):
        return  # a program that has only one is none the worse for it
    tell_splits(_tell_split)
    Objects(None if job is None else job.played).install()
    Settling().install()
    if placed:
        launchers.install()
    if job is not None:
        shared = FileStore(job.meeting, len(job.played)) if len(job.played) > 1 else None
        meeting = Meeting(job.world_size, shared)
        for scheme in ("env", "tcp", "file"):
            rendezvous_handlers[scheme] = meeting
        mirror_gloo()
        if shared is None:
            when_imported("torch.distributed.checkpoint", checkpoint_alone)


def _tell_split(ranks: int) -> None:
    gpu = current()
    if gpu is not None:
        gpu.tell_split(ranks)
