"""NCCL's line of the bridge from allocated memory to what nvidia-smi shows. Knows results; lays out nothing."""

from __future__ import annotations

from dataclasses import dataclass

from ..gpus.nccl import seen
from ..tape.memory import MemoryResult
from .layout import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class NCCLRow:
    """What the bridge says of NCCL."""

    name: str
    size: int | None
    """Bytes, a part of what is beside torch's memory; None: not known, and in no sum."""
    note: str


def nccl_row(result: MemoryResult) -> NCCLRow | None:
    """NCCL's line; None: the process has no communicator."""
    nccl = result.nccl
    if nccl is None:
        return None
    if nccl.size is not None:
        note = f"{counted(nccl.communicators, 'communicator')}, as NCCL counts it"
        return NCCLRow(name="  of these NCCL", size=nccl.size, note=note)
    return NCCLRow(name="NCCL", size=None, note=f"not modelled; {seen(result.device_name)}")
