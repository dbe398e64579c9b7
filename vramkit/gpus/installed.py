"""This machine's CUDA devices, as the driver lists them. Knows a few calls of the driver; needs no torch, and begins no
context: a process that asked can still fork, or switch the virtual GPU on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

from ..errors import UsageError
from .catalogue import CATALOGUE, GENERIC, GPU, find
from .context import measured_context

# In a process of its own: a driver that was loaded here would be found before the virtual GPU, and a context that was
# begun here could not be used in a forked child. Attributes 75, 76, 16 and 38: capability, multiprocessors, L2 cache.
_LIST = """
import ctypes, json, sys
try:
    cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
except OSError:
    print("[]")
    raise SystemExit
count, found = ctypes.c_int(), []
if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0:
    for ordinal in range(count.value):
        device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
        cuda.cuDeviceGet(ctypes.byref(device), ordinal)
        cuda.cuDeviceGetName(name, 256, device)
        cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        values = []
        for attribute in (75, 76, 16, 38):
            value = ctypes.c_int()
            cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            values.append(value.value)
        found.append([name.value.decode(errors="replace"), memory.value, *values])
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A CUDA device of this machine."""

    name: str
    memory: int
    """Bytes."""
    capability: tuple[int, int]
    multiprocessors: int
    l2_cache: int
    """Bytes."""

    def as_gpu(self) -> GPU:
        """The card, with the context that the catalogue assumes of it. Raises: UsageError for an unknown capability."""
        try:
            context = find(self.name).context
        except UsageError:
            context = measured_context(self.name) or CATALOGUE[GENERIC].context
        return GPU(
            name=self.name.lower().replace(" ", "-"),
            product=self.name,
            memory=self.memory,
            capability=self.capability,
            multiprocessors=self.multiprocessors,
            l2_cache=self.l2_cache,
            context=context,
        )


def cuda_devices() -> list[Device]:
    """The devices that the driver lists, as ``CUDA_VISIBLE_DEVICES`` admits them; empty without a driver."""
    try:
        process = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _LIST], capture_output=True, text=True, timeout=60, check=True
        )
        rows = json.loads(process.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return []  # a driver that crashes or hangs has no device that could be used
    return [
        Device(name=name, memory=memory, capability=(major, minor), multiprocessors=multiprocessors, l2_cache=l2_cache)
        for name, memory, major, minor, multiprocessors, l2_cache in rows
    ]
