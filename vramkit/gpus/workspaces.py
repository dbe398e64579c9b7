"""The workspaces that torch gives cuBLAS and cuBLASLt: one for each handle and stream, by the card. No torch.

As ``getChosenWorkspaceSize`` in ATen/cuda/CublasHandlePool.cpp has it by default; ``CUBLAS_WORKSPACE_CONFIG`` changes
it.
"""

from __future__ import annotations

from .catalogue import GPU

CUBLAS_WORKSPACE = 8_519_680
"""Bytes, on cards before Hopper."""
CUBLAS_WORKSPACE_HOPPER = 33_554_432
"""Bytes, on Hopper and since."""
CUBLASLT_WORKSPACE = 1_048_576
"""Bytes that torch up to 2.11 gives cuBLASLt of its own, on every card, where ``CUBLASLT_WORKSPACE_SIZE`` says nothing
else. Later ones let it use cuBLAS's."""


def cublas_workspace(gpu: GPU) -> int:
    """Bytes of the workspace on a card."""
    return CUBLAS_WORKSPACE_HOPPER if gpu.capability >= (9, 0) else CUBLAS_WORKSPACE
