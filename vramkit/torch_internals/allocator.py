"""torch's private names of the CUDA allocator and of what shares its memory: history, snapshots, workspaces, contexts.

Knows what to call; what the answers mean, the readers of a snapshot know.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from ..gpus import CUBLAS_WORKSPACE, CUBLAS_WORKSPACE_HOPPER, CUBLASLT_WORKSPACE
from .names import look_up, place_of
from .versions import BLAS_KEEPS_WORKSPACE, LT_HAS_WORKSPACE, LT_KEEPS_WORKSPACE

_METADATA = "2.11 to 2.14"

set_metadata: Callable[[str], None] | None = look_up(
    "torch._C._cuda_setMemoryMetadata", "profile on CUDA", versions=_METADATA, fallback=None
)
"""Stamps a text on every later entry of this thread's history; None: this torch has no such thing."""

get_metadata: Callable[[], str] | None = look_up(
    "torch._C._cuda_getMemoryMetadata", "profile on CUDA", versions=_METADATA, fallback=None
)
"""The text that entries of this thread are stamped with."""

_is_public: object = look_up(
    "torch.cuda.memory._set_memory_metadata", "profile on CUDA", versions=_METADATA, fallback=None
)

HAS_METADATA: bool = set_metadata is not None and get_metadata is not None and _is_public is not None
"""Whether this torch stamps its entries. One that has only the functions in C++ is not known to show the texts."""

is_history_on: Callable[[], bool] = look_up("torch._C._cuda_isHistoryEnabled", "profile on CUDA")
"""Whether the allocator keeps a history."""

record_history: Callable[..., None] = look_up(
    "torch.cuda.memory._record_memory_history", "profile on CUDA", "virtual engine"
)
"""Switches the history on or off. Its keywords differ between versions; all have ``context``, ``stacks`` and
``max_entries``."""

_snapshot: Callable[..., dict[str, Any]] | None = look_up(
    "torch._C._cuda_memorySnapshot", "profile on CUDA", fallback=None
)
snapshot: Callable[[], dict[str, Any]] = (
    look_up("torch.cuda.memory._snapshot", "profile on CUDA") if _snapshot is None else partial(_snapshot, None)
)
"""All segments and the history of every device. The function in C++, which costs less, where it is."""

HAS_NATIVE_STACKS: bool = sys.platform == "linux" and platform.machine() == "x86_64"
"""Whether torch can follow C++'s stacks here."""

_SYMBOLS = "TORCH_SYMBOLIZE_MODE"


@contextmanager
def quick_symbols() -> Iterator[None]:
    """Let snapshots name C++'s functions as the loader knows them, in a second; else torch starts ``addr2line``, which
    takes ten for names of files that nobody has, and may not be installed.

    torch reads this setting once in a process, when it needs the first name. A program's own stays as it is.
    """
    if _SYMBOLS in os.environ:
        yield
        return
    os.environ[_SYMBOLS] = "dladdr"
    try:
        yield
    finally:
        os.environ.pop(_SYMBOLS, None)


_workspace_size: Callable[[], int] | None = look_up(
    "torch._C._cuda_getCublasWorkspaceSize", "profile on CUDA", fallback=None
)
_BY_DEFAULT = {CUBLAS_WORKSPACE, CUBLAS_WORKSPACE_HOPPER}


def workspace_sizes() -> frozenset[int]:
    """What cuBLAS and cuBLASLt may ask torch for, and then keep for each handle and stream, bytes."""
    if not BLAS_KEEPS_WORKSPACE:
        return frozenset()
    of_lt = {CUBLASLT_WORKSPACE} if LT_HAS_WORKSPACE and LT_KEEPS_WORKSPACE else set()
    if _workspace_size is not None:
        return frozenset({int(_workspace_size()), *of_lt})
    # ":4096:8" says 8 times 4096 KiB.
    set_up = re.findall(r":(\d+):(\d+)", os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""))
    sizes = {sum(int(size) * int(count) for size, count in set_up) << 10} if set_up else _BY_DEFAULT
    return frozenset({*sizes, *of_lt})


def _holds_memory(device: int) -> bool:
    return torch.cuda.memory_reserved(device) > 0


has_context: Callable[[int], bool] = look_up(
    "torch._C._cuda_hasPrimaryContext", "profile on CUDA", fallback=_holds_memory
)
"""Whether CUDA has begun on a device. To ask the device anything else would make a context, of hundreds of MiB."""

clear_workspaces: Callable[[], None] = look_up("torch._C._cuda_clearCublasWorkspaces", "batch size on CUDA")
"""Gives up cuBLAS's workspaces, which torch keeps for ever."""

_device_count = place_of("torch._C._cuda_getDeviceCount", "virtual engine")


@contextmanager
def counting_one_device() -> Iterator[None]:
    """Let torch find one CUDA device without asking CUDA: a process that has asked can't fork another that uses it."""
    original = vars(_device_count.owner)[_device_count.name]
    setattr(_device_count.owner, _device_count.name, lambda: 1)
    try:
        yield
    finally:
        setattr(_device_count.owner, _device_count.name, original)
