"""Prepares a process for being a rank on virtual GPUs. To be called once torch is there, before the program runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from torch import distributed
from torch.distributed import (  # type: ignore[attr-defined] # which it has
    FileStore,
    ProcessGroup,
    distributed_c10d,
)

from ..errors import UsageError
from ..torch_internals.distributed import (
    around_consolidating,
    before_checkpoint,
    checkpoint_alone,
    mirror_gloo,
    refuse_nvshmem,
    rendezvous_handlers,
    tell_splits,
)
from ..torch_internals.late import when_imported
from ..torch_internals.needs import missing_for, require
from ..virtual_gpu import current
from . import launchers
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
    objects = Objects(None if job is None else job.played)
    objects.install()
    consolidating = partial(around_consolidating, before=objects.check_state, lost=objects.refuse_state)
    when_imported("torch.distributed.optim.zero_redundancy_optimizer", consolidating)
    Settling().install()
    when_imported("torch.distributed._symmetric_memory", partial(refuse_nvshmem, refuse=_refuse_nvshmem))
    if placed:
        launchers.install()
    if job is not None:
        # A thread of NCCL's asks the store every second whether another rank wants a dump. The store is Python's, so
        # that thread crashes when Python has ended; and no other rank asks for any.
        os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] = "0"
        shared = FileStore(job.meeting, len(job.played)) if len(job.played) > 1 else None
        meeting = Meeting(job.world_size, shared)
        for scheme in ("env", "tcp", "file"):
            rendezvous_handlers[scheme] = meeting
        mirror_gloo()
        for module in (distributed, distributed_c10d):
            vars(module)["monitored_barrier"] = _waited
        if shared is None:
            when_imported("torch.distributed.checkpoint", checkpoint_alone)
        else:
            check = partial(_check_checkpoint, job.played)
            when_imported("torch.distributed.checkpoint", partial(before_checkpoint, check=check))


def _refuse_nvshmem() -> None:
    """Raises: UsageError: always."""
    raise UsageError(
        "NVSHMEM was chosen for symmetric memory",
        "the virtual GPU has no memory that ranks share",
        instead="Switch it off; collectives of torch.distributed work",
    )


def _waited(*_: object, **__: object) -> None:
    """Every rank is as far as this one."""


def _check_checkpoint(played: Sequence[int], group: ProcessGroup | None) -> None:
    """Raises: UsageError: not every rank of a distributed checkpoint is there."""
    if not distributed.is_initialized():
        return
    missing = [
        rank for rank in distributed.get_process_group_ranks(group or distributed.group.WORLD) if rank not in played
    ]
    if missing:
        raise UsageError(
            "A distributed checkpoint was to be saved or loaded",
            f"rank {missing[0]} is not played",
            "Each rank has a part of it, and tells the others which",
            "Play all of them: --ranks all; or each alone, with its own part: --alone",
        )


def _tell_split(ranks: int) -> None:
    gpu = current()
    if gpu is not None:
        gpu.tell_split(ranks)
