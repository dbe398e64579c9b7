"""Graphics cards: the catalogue of models, and what is installed in this machine. No torch."""

from __future__ import annotations

from .catalogue import CATALOGUE, GENERIC, GPU, MAX_MEMORY, all_gpus, common_gpus, find, is_derived, record
from .installed import Device, cuda_devices
from .workspaces import CUBLAS_WORKSPACE, CUBLAS_WORKSPACE_HOPPER, CUBLASLT_WORKSPACE, cublas_workspace

__all__ = [
    "CATALOGUE",
    "CUBLASLT_WORKSPACE",
    "CUBLAS_WORKSPACE",
    "CUBLAS_WORKSPACE_HOPPER",
    "GENERIC",
    "GPU",
    "MAX_MEMORY",
    "Device",
    "all_gpus",
    "common_gpus",
    "cublas_workspace",
    "cuda_devices",
    "find",
    "is_derived",
    "record",
]
