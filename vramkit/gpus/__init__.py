"""Graphics cards: the catalogue of models, and what is installed in this machine. No torch."""

from __future__ import annotations

from .catalogue import CATALOGUE, GENERIC, GPU, MAX_MEMORY, all_gpus, find
from .installed import Device, cuda_devices

__all__ = ["CATALOGUE", "GENERIC", "GPU", "MAX_MEMORY", "Device", "all_gpus", "cuda_devices", "find"]
