"""torch's private names of the communicators of NCCL that a process has, which NCCL is asked about."""

from __future__ import annotations

import sys
from typing import Any

import torch

from ..gpus.nccl import NCCL

_GROUPS = "torch.distributed.distributed_c10d"


def nccl_on(device: int) -> NCCL | None:
    """What the communicators of all process groups have on a device, as NCCL counts it; None: there is none.

    torch 2.14 asks, and NCCL 2.30 answers; otherwise no size is known.
    """
    groups = getattr(getattr(sys.modules.get(_GROUPS), "_world", None), "pg_map", {})
    if not groups:
        return None
    with torch.cuda.device(device):  # a communicator is asked for on the current one
        sizes = [size for group in groups for size in _sizes(group, torch.device("cuda", device))]
    if not sizes:
        return None
    known = [size for size in sizes if size is not None]
    return NCCL(communicators=len(sizes), size=sum(known) if len(known) == len(sizes) else None)


def _sizes(group: Any, device: torch.device) -> list[int | None]:
    """Of a group's communicator on a device the size; empty: it has none there, or has not begun."""
    try:
        backend = group._get_backend(device)
        if backend.name() != "nccl" or not backend._comm_ptr():
            return []
    except (RuntimeError, AttributeError):  # no backend for CUDA, or another torch
        return []
    try:
        return [int(backend.memory_stats()["total"])]
    except (RuntimeError, AttributeError, KeyError):  # an older torch, or an older NCCL
        return [None]
