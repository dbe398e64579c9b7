"""Matrix products: cuBLAS's workspaces. One for each thread that multiplies, because handles are a thread's own."""

from __future__ import annotations

import torch

from ....gpus import GPU
from ..calls import Call
from .copies import matrix_copies
from .table import rule

aten = torch.ops.aten


def workspace_of(gpu: GPU) -> int:
    """Bytes that torch hands to cuBLAS and cuBLASLt, by the card.

    ``CUBLAS_WORKSPACE_CONFIG`` would change it.
    """
    return 33_554_432 if gpu.capability >= (9, 0) else 8_519_680


@rule(aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.addmv, aten.mv, aten.dot, aten.addbmm, aten._addmm_activation)
def product(call: Call) -> None:
    """The result, copies of what is no matrix to cuBLAS, the workspace at a thread's first product."""
    call.output()
    factors = [each for each in call.args[-2:] if isinstance(each, torch.Tensor)]
    with call.holding(*matrix_copies(*factors)):
        call.workspace("cublas", workspace_of(call.gpu))
