"""Which limit of the virtual GPU an exception comes from, in words. Knows the functions that can't be answered, and how
torch and others report that; knows no profile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class _Limit(NamedTuple):
    functions: str
    """A pattern of the functions that meet it."""
    signs: str
    """A pattern of what an exception says that comes from it; the function's own name is always one."""
    what: str
    instead: str


_FAILURE = r"cuda (driver |runtime )?error|cudaerror|error \[cuda\]|not supported"
_LIMITS = (
    _Limit(
        r"^(nccl|nvshmem)",
        r"nccl|nvshmem|symmetric memory",
        "memory that ranks share (symmetric memory, windows, NVSHMEM) is not there",
        "Switch it off; collectives of torch.distributed work",
    ),
    _Limit(
        r"ShareableHandle|Multicast",
        _FAILURE,
        "memory that ranks share (symmetric memory, asynchronous tensor parallelism) is not there",
        "Switch it off; collectives of torch.distributed work",
    ),
    _Limit(
        r"Ipc",
        _FAILURE,
        "its memory can't be handed to another process (CUDA IPC)",
        "Share CPU tensors, or keep what uses the tensor in this process",
    ),
    _Limit(
        r"^cu(GetProcAddress|GetExportTable)",
        r"cuda (driver |runtime )?error|cudaerror|driver version is insufficient|no cuda-capable device",
        "a library with a CUDA runtime of its own, linked in statically, does not reach it",
        "Do without that extension, or take a build of it that is linked with libcudart",
    ),
    _Limit(r"^cufft", r"cufft", "this transform of cuFFT is not stood in for", "Do that step on the CPU"),
    _Limit(r"^cusolver", r"cusolver", "this routine of cuSOLVER is not stood in for", "Do that step on the CPU"),
    _Limit(r"^cusparse", r"cusparse", "this routine of cuSPARSE is not stood in for", "Do that step on the CPU"),
    _Limit(
        r"^cudnn",
        r"cudnn",
        "this function of cuDNN is not stood in for",
        "Set torch.backends.cudnn.enabled = False; torch then has kernels of its own for most layers",
    ),
    _Limit(r"^cu", _FAILURE, "this function of CUDA is not stood in for", "Do without the feature that calls it"),
)


def limit_behind(error: BaseException, functions: Sequence[str]) -> str | None:
    """The limit that an exception comes from, as a note for it; None: it has nothing to do with one.

    Args:
        error: what a program raised.
        functions: that could not be answered, the newest first.
    """
    said = "\n".join(_texts(error)).lower()
    for function in functions:
        limit = next((each for each in _LIMITS if re.search(each.functions, function)), None)
        if limit is not None and (function.lower() in said or re.search(limit.signs, said)):
            return f"This is a limit of the virtual GPU: {limit.what} ({function}). {limit.instead}."
    return None


def _texts(error: BaseException) -> Iterator[str]:
    """What an exception says, and those that it was raised from."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        yield str(current)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
