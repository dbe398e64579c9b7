"""What a card and its driver say of themselves."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from typing import Any

from . import driver


def facts(wait: Callable[[], None]) -> dict[str, Any]:
    """Properties and attributes of device 0, versions, and what NVML counts."""
    import torch

    wait()
    idle = driver.nvml_memory()

    properties = torch.cuda.get_device_properties(0)
    workspace = getattr(torch._C, "_cuda_getCublasWorkspaceSize", None)
    lt_workspace = getattr(torch._C, "_cuda_getCublasLtWorkspaceSize", None)
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "properties": {
            name: value
            for name in dir(properties)
            if not name.startswith("_") and isinstance(value := getattr(properties, name), (int, str))
        },
        "attributes": driver.attributes(),
        "nvml_idle": idle,
        "memory_info": driver.memory_info(),
        "nvml": driver.nvml_memory(),
        "cublas_workspace": workspace() if workspace else None,
        "cublaslt_workspace": lt_workspace() if lt_workspace else None,
    }


def of_the_machine() -> dict[str, Any]:
    """What nvidia-smi prints while nothing of ours runs on the card."""
    fields = "name,driver_version,memory.total,memory.reserved,memory.used,memory.free,clocks.max.sm,clocks.max.memory,"
    fields += "compute_cap,compute_mode,mig.mode.current,ecc.mode.current,vbios_version"
    return {
        "kind": "machine",
        "nvidia-smi": driver.nvidia_smi(f"--query-gpu={fields}", "--format=csv"),
        "memory": driver.nvidia_smi("-q", "-d", "MEMORY"),
        "processes": driver.nvidia_smi("--query-compute-apps=pid,used_memory", "--format=csv"),
        "versions": driver.nvidia_smi("--version"),
    }
