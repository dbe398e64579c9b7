"""Measuring what CUDA's context and libraries take of a card. Knows the process in which torch uses one thing after the
other; keeps nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys

from ..errors import DeviceError
from .context import Measured

# In a process of its own, because a context and what was loaded stay until a process ends. What others use of the card
# is asked of NVML before there is a context, by its newer call: the older one counts what the driver keeps for itself.
_STAGES = """
import ctypes, json, sys

class Memory(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_uint), ("total", ctypes.c_uint64), ("reserved", ctypes.c_uint64),
        ("free", ctypes.c_uint64), ("used", ctypes.c_uint64),
    ]

def others(ordinal):
    cuda, nvml = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libnvidia-ml.so.1")
    name, board, version = ctypes.create_string_buffer(64), ctypes.c_void_p(), ctypes.create_string_buffer(80)
    memory = Memory(version=ctypes.sizeof(Memory) | 2 << 24)
    for status in (
        cuda.cuInit(0), cuda.cuDeviceGetPCIBusId(name, 64, ordinal), nvml.nvmlInit_v2(),
        nvml.nvmlDeviceGetHandleByPciBusId_v2(name, ctypes.byref(board)),
        nvml.nvmlDeviceGetMemoryInfo_v2(board, ctypes.byref(memory)), nvml.nvmlSystemGetDriverVersion(version, 80),
    ):
        if status:
            raise OSError(f"the driver or NVML answered with status {status}")
    return memory.used, version.value.decode()

ordinal = int(sys.argv[1])
used_before, driver = others(ordinal)
import torch

device, stages = torch.device("cuda", ordinal), {}
torch.cuda.set_device(device)

def told(stage):
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    stages[stage] = total - free - torch.cuda.memory_reserved() - used_before

torch.empty(0, device=device)
told("the context alone")
torch.zeros(1, device=device)
told("a first kernel")
linear = torch.nn.Linear(512, 512, device=device)
linear(torch.zeros(64, 512, device=device)).sum().backward()
told("matrix products, forward and backward")
convolution = torch.nn.Conv2d(16, 32, 3, device=device)
convolution(torch.zeros(8, 16, 32, 32, device=device)).sum().backward()
torch.optim.Adam([*linear.parameters(), *convolution.parameters()]).step()
told("a convolution, Adam")
print(json.dumps({"stages": stages, "torch": torch.__version__, "driver": driver}))
"""


def measure(ordinal: int) -> Measured:
    """Let a fresh process use what trainings use, on a card that nobody else should use meanwhile. Takes seconds.

    Args:
        ordinal: of the device, as ``CUDA_VISIBLE_DEVICES`` admits them.

    Raises:
        DeviceError: it could not be measured.
    """
    asked = f"What CUDA's context takes of device {ordinal} was to be measured"
    try:
        process = subprocess.run(
            [sys.executable, "-c", _STAGES, str(ordinal)], capture_output=True, text=True, timeout=300
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise DeviceError(asked, str(error), instead="Try again when the card is idle") from error
    if process.returncode:
        said = (process.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise DeviceError(
            asked,
            f"its process ended with {process.returncode}: {said}",
            instead="It needs Linux, a CUDA build of torch and a driver from 510 on",
        )
    found = json.loads(process.stdout.splitlines()[-1])
    if min(found["stages"].values()) <= 0:
        raise DeviceError(
            asked,
            f"it came out as {min(found['stages'].values()):,} B",
            "Other processes gave memory back meanwhile",
            "Try again when the card is idle",
        )
    return Measured(stages=found["stages"], torch=found["torch"], driver=found["driver"])
