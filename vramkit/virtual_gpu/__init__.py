"""A GPU that is not there: the CUDA build of torch runs unmodified, and only the kernels do nothing.

::

    import vramkit.virtual_gpu
    gpu = vramkit.virtual_gpu.activate("a100-40gb")      # before the first `import torch`

    import torch
    torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    torch.cuda.memory_allocated()                        # what a real A100 would say

Caching allocator, autograd, kernel selection and cuDNN's planning are the real ones, so memory figures, snapshots and
``torch.OutOfMemoryError`` are too. Values are what the CPU's kernels compute: of small tensors, on which sizes depend,
or with ``values="all"`` of every tensor, so that a program trains. Time means nothing. README.md beside this file says
what is exact and what is assumed.

This package imports no torch. See ``activate`` for child processes.
"""

from __future__ import annotations

from .activation import activate, can_compute_values, current, is_active
from .handle import AddressOrder, Settings, Values, VirtualGPU

__all__ = ["AddressOrder", "Settings", "Values", "VirtualGPU", "activate", "can_compute_values", "current", "is_active"]
