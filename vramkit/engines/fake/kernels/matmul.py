"""Matrix products: cuBLAS's workspaces. One for each thread that multiplies, because handles are a thread's own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ....torch_internals.versions import LT_HAS_WORKSPACE, SINCE_2_10
from .call import Call
from .copies import matrix_copies
from .registry import rule

aten = torch.ops.aten
_LITTLE = 64 << 10  # bytes: norms, and which matrices have which


def _is_for_lt(bias: torch.Tensor, matrix: torch.Tensor, beta: float, result: torch.Tensor) -> bool:
    """Whether cuBLASLt adds a vector to a product. Where it shares cuBLAS's workspace, that makes no difference."""
    return (
        LT_HAS_WORKSPACE
        and (bias.dim() == 1 or (SINCE_2_10 and bias.dim() == 2 and bias.shape[0] == 1))
        and (result.dtype == matrix.dtype or SINCE_2_10)
        and bias.is_contiguous()
        and bias.numel() == matrix.shape[1]
        and min(matrix.shape) > 1
        and beta == 1
        and not result.is_complex()
        and result.is_contiguous()
        and result.numel() > 0
    )


def _product(call: Call, one: torch.Tensor, other: torch.Tensor) -> None:
    """The result, copies of what is no matrix to cuBLAS, the workspace at a thread's first product."""
    call.output()
    with call.holding(*matrix_copies(one, other)):
        call.cublas_workspace()


@rule(aten.mm, aten.bmm)
def mm(call: Call, self: torch.Tensor, mat2: torch.Tensor) -> None:
    """A product of two matrices, or of many pairs."""
    _product(call, self, mat2)


@rule(aten.addmm, aten._addmm_activation)
def addmm(call: Call, self: torch.Tensor, mat1: torch.Tensor, mat2: torch.Tensor, beta: float = 1) -> None:
    """A product that is added to something."""
    call.output()
    with call.holding(*matrix_copies(mat1, mat2)):
        if _is_for_lt(self, mat2, beta, call.result):
            call.cublaslt_workspace()
        else:
            call.cublas_workspace()


@rule(aten.addbmm, aten.baddbmm)
def addbmm(call: Call, batch1: torch.Tensor, batch2: torch.Tensor) -> None:
    """Products of many pairs, added to something."""
    _product(call, batch1, batch2)


@rule(aten.addmv)
def addmv(call: Call, mat: torch.Tensor, vec: torch.Tensor) -> None:
    """A matrix times a vector, added to something."""
    _product(call, mat, vec)


@rule(aten.mv)
def mv(call: Call, self: torch.Tensor, vec: torch.Tensor) -> None:
    """A matrix times a vector."""
    _product(call, self, vec)


@rule(aten.dot)
def dot(call: Call, self: torch.Tensor, tensor: torch.Tensor) -> None:
    """A vector times a vector."""
    _product(call, self, tensor)


@rule(aten._trilinear)
def trilinear(
    call: Call,
    i1: torch.Tensor,
    i2: torch.Tensor,
    i3: torch.Tensor,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sumdim: Sequence[int],
    unroll_dim: int,
) -> None:
    """The result; for each index of the unrolled dimension the product of the first two, and its with the third."""
    call.output()
    sizes = [_expanded(i1, expand1), _expanded(i2, expand2), _expanded(i3, expand3)]
    widest = [max(each) for each in zip(*sizes, strict=True)]
    kept = [dim for dim in range(len(widest)) if dim != unroll_dim]
    first = [max(sizes[0][dim], sizes[1][dim]) for dim in kept if not (dim in sumdim and dim in expand3)]
    second = [widest[dim] for dim in kept if dim not in sumdim]
    width = i1.element_size()
    for _ in range(widest[unroll_dim]):
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
    call.assume("The powers that linalg_matrix_exp needs depend on values", 16 * call.result.nbytes + _LITTLE)
