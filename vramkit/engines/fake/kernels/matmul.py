"""Matrix products: cuBLAS's workspaces. One for each thread that multiplies, because handles are a thread's own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ....gpus import GPU
from .call import Call
from .copies import matrix_copies, size_of
from .registry import rule

aten = torch.ops.aten
_LITTLE = 64 << 10  # bytes: norms, and which matrices have which


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


@rule(aten._trilinear)
def trilinear(call: Call) -> None:
    """The result; for each index of the unrolled dimension the product of the first two, and its with the third."""
    *tensors, expand1, expand2, expand3, summed = call.args[:7]
    unrolled = call.argument(7, "unroll_dim", 1)
    call.output()
    sizes = [_expanded(tensor, dims) for tensor, dims in zip(tensors, (expand1, expand2, expand3), strict=True)]
    widest = [max(each) for each in zip(*sizes, strict=True)]
    kept = [dim for dim in range(len(widest)) if dim != unrolled]
    first = [max(sizes[0][dim], sizes[1][dim]) for dim in kept if not (dim in summed and dim in expand3)]
    second = [widest[dim] for dim in kept if dim not in summed]
    width = tensors[0].element_size()
    for _ in range(widest[unrolled]):
        product, summand = call.take(width * math.prod(first)), call.take(width * math.prod(second))
        call.give(product, summand)


def _expanded(tensor: torch.Tensor, dims: Sequence[int]) -> list[int]:
    sizes = list(tensor.shape)
    for dim in sorted(dims):
        sizes.insert(dim, 1)
    return sizes


@rule(aten.linalg_matrix_exp)
def matrix_exp(call: Call) -> None:
    """The result, and powers of the matrix: the larger its norm is, the more of them."""
    call.output()
    call.assume("The powers that linalg_matrix_exp needs depend on values", 16 * size_of(call.result) + _LITTLE)
