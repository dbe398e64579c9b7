"""What the driver, NVML and the CUDA runtime say, called directly: so that the same call works with every torch."""

from __future__ import annotations

import ctypes
import os
import subprocess
from typing import Any

Sizes = dict[str, int]


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_uint64), ("free", ctypes.c_uint64), ("used", ctypes.c_uint64)]


class _MemoryV2(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_uint), ("total", ctypes.c_uint64), ("reserved", ctypes.c_uint64),
        ("free", ctypes.c_uint64), ("used", ctypes.c_uint64),
    ]  # fmt: skip


class _Process(ctypes.Structure):
    _fields_ = [
        ("pid", ctypes.c_uint), ("used", ctypes.c_uint64), ("instance", ctypes.c_uint), ("compute", ctypes.c_uint)
    ]  # fmt: skip


def nvml_memory() -> Sizes:
    """Bytes, as NVML counts them: the board's total, what the driver reserves, what is used and free; and of each
    process that it lists. Works without a context. Empty where there is no NVML.
    """
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return {}
    handle, found = ctypes.c_void_p(), {}
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(_visible(), ctypes.byref(handle)):
        return {}
    old = _Memory()
    if nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(old)) == 0:
        found |= {"total": old.total, "used": old.used, "free": old.free}
    new = _MemoryV2(version=ctypes.sizeof(_MemoryV2) | 2 << 24)
    if hasattr(nvml, "nvmlDeviceGetMemoryInfo_v2") and not nvml.nvmlDeviceGetMemoryInfo_v2(handle, ctypes.byref(new)):
        found |= {"reserved": new.reserved, "used_v2": new.used, "free_v2": new.free}
    count, rows = ctypes.c_uint(64), (_Process * 64)()
    listed = getattr(nvml, "nvmlDeviceGetComputeRunningProcesses_v3", None)
    if listed is not None and listed(handle, ctypes.byref(count), rows) == 0:
        found["processes"] = count.value
        for row in rows[: count.value]:
            found["this process" if row.pid == os.getpid() else f"process {row.pid}"] = row.used
    return found


def _visible() -> int:
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return int(first) if first.isdigit() else 0


def runtime() -> Any:
    """The CUDA runtime that torch has loaded: a virtual one where it is active."""
    return ctypes.CDLL(None)


def memory_info() -> tuple[int, int]:
    """What cudaMemGetInfo says: free and total bytes. Begins a context."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    status = runtime().cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    if status:
        raise RuntimeError(f"cudaMemGetInfo: error {status}")
    return free.value, total.value


def malloc(size: int) -> int | None:
    """An address of cudaMalloc's; None: it refused."""
    address = ctypes.c_void_p()
    status = runtime().cudaMalloc(ctypes.byref(address), ctypes.c_size_t(size))
    if status:
        runtime().cudaGetLastError()
        return None
    return address.value


def free(address: int) -> None:
    """cudaFree."""
    runtime().cudaFree(ctypes.c_void_p(address))


def attributes() -> Sizes:
    """Every attribute of device 0 that cudaDeviceGetAttribute knows, by its number."""
    found, value = {}, ctypes.c_int()
    for number in range(1, 160):
        if runtime().cudaDeviceGetAttribute(ctypes.byref(value), number, 0) == 0:
            found[str(number)] = value.value
    runtime().cudaGetLastError()
    return found


def nvidia_smi(*options: str) -> str:
    """What nvidia-smi prints, or why it did not."""
    try:
        done = subprocess.run(["nvidia-smi", *options], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}"
    return done.stdout or done.stderr
