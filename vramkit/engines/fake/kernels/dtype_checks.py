"""Which types CUDA's kernels want to be the same, and what torch says where they are not: fakes would do with any.

Knows no memory. A model that forgot autocast, or a batch that was not converted, is found out here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from .arguments import Binder, binders

aten = torch.ops.aten
_Check = TypeVar("_Check", bound=Callable[..., None])
CHECKS: dict[Any, tuple[Callable[..., None], Binder]] = {}
"""By operator, with its overload."""

_IN_CPP = {
    torch.float16: "c10::Half", torch.bfloat16: "c10::BFloat16", torch.float32: "float", torch.float64: "double",
    torch.uint8: "unsigned char", torch.int8: "signed char", torch.int16: "short int", torch.int32: "int",
    torch.int64: "long int", torch.bool: "bool", torch.complex64: "c10::complex<float>",
    torch.complex128: "c10::complex<double>",
}  # fmt: skip
_NAMES = {
    torch.float16: "Half", torch.bfloat16: "BFloat16", torch.float32: "Float", torch.float64: "Double",
    torch.uint8: "Byte", torch.int8: "Char", torch.int16: "Short", torch.int32: "Int", torch.int64: "Long",
    torch.bool: "Bool", torch.complex64: "ComplexFloat", torch.complex128: "ComplexDouble",
}  # fmt: skip
_HALF = (torch.float16, torch.bfloat16)


def check_types(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise what torch raises where a kernel wants types to be the same, and they are not.

    Raises:
        RuntimeError: as torch says it.
    """
    found = CHECKS.get(func)
    if found is not None:
        check, binder = found
        check(*binder(args, kwargs))


def in_cpp(tensor: torch.Tensor) -> str:
    """A tensor's type as C++ calls it, and some errors of torch's."""
    return _IN_CPP.get(tensor.dtype, str(tensor.dtype))


def _name(tensor: torch.Tensor) -> str:
    return _NAMES.get(tensor.dtype, str(tensor.dtype))


def _checks(*operators: Any) -> Callable[[_Check], _Check]:
    """Put a check into the table, for operators without their overloads. Its parameters are called as in the schemas.

    Raises:
        DeviceError: an operator of this torch has no argument of such a name.
    """

    def enter(function: _Check) -> _Check:
        for operator in operators:
            for overload, binder in binders(function, operator):
                CHECKS[overload] = function, binder
        return function

    return enter


def _expect(expected: torch.Tensor, *found: torch.Tensor | None) -> None:
    for each in found:
        if each is not None and each.dtype != expected.dtype:
            raise RuntimeError(f"expected scalar type {_name(expected)} but found {_name(each)}")


@_checks(aten.mm)
def _mm(self: torch.Tensor, mat2: torch.Tensor, out_dtype: torch.dtype | None = None) -> None:
    if self.dtype != mat2.dtype:
        if out_dtype is not None:
            raise RuntimeError("input dtypes must be the same")
        found = f"{in_cpp(self)} != {in_cpp(mat2)}"
        raise RuntimeError(f"expected mat1 and mat2 to have the same dtype, but got: {found}")


@_checks(aten._addmm_activation)
def _addmm_activation(self: torch.Tensor, mat1: torch.Tensor, mat2: torch.Tensor) -> None:
    _addmm(self, mat1, mat2)


@_checks(aten.addmm)
def _addmm(self: torch.Tensor, mat1: torch.Tensor, mat2: torch.Tensor, out_dtype: torch.dtype | None = None) -> None:
    _as_mat2("mat1", mat1, mat2)
    if out_dtype is None:
        _as_mat2("self", self, mat2)
    elif self.dtype not in (out_dtype, mat1.dtype):
        raise RuntimeError("self dtype must match either out_dtype or mat1 dtype")


def _as_mat2(name: str, tensor: torch.Tensor, mat2: torch.Tensor) -> None:
    if tensor.dtype != mat2.dtype:
        found = f"{_name(tensor)} and {_name(mat2)}"
        raise RuntimeError(f"{name} and mat2 must have the same dtype, but got {found}")


@_checks(aten.mv)
def _mv(self: torch.Tensor, vec: torch.Tensor) -> None:
    if self.dtype != vec.dtype:
        found = f"{_name(vec)}, {_name(self)}, and {_name(vec)}"
        raise RuntimeError(f"addmv input tensors must have the same dtype, but got {found}")


@_checks(aten.bmm)
def _bmm(self: torch.Tensor, mat2: torch.Tensor, out_dtype: torch.dtype | None = None) -> None:
    if out_dtype is not None and self.dtype != mat2.dtype:
        raise RuntimeError("batch1 and batch2 must have the same dtype")
    _expect(self, mat2)


@_checks(aten.grid_sampler_2d, aten.grid_sampler_3d)
def _grid_sampler(input: torch.Tensor, grid: torch.Tensor) -> None:
    _expect(input, grid)


@_checks(aten.convolution)
def _convolution(input: torch.Tensor, weight: torch.Tensor) -> None:
    if input.dtype != weight.dtype:
        types = (f"(torch.cuda.{_name(each)}Tensor)" for each in (input, weight))
        raise RuntimeError("Input type {} and weight type {} should be the same".format(*types))


@_checks(aten.native_layer_norm)
def _layer_norm(input: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> None:
    _expect(input, weight, bias)


@_checks(aten.native_group_norm)
def _group_norm(input: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> None:
    others = [each for each in (weight, bias) if each is not None]
    if others and others[0].dtype != input.dtype:  # torch checks as for the CPU first
        if any(each.dtype != torch.float32 for each in others):
            raise RuntimeError("mixed dtype (CPU): expect parameter to have scalar type of Float")
        if input.dtype not in _HALF:
            raise RuntimeError("mixed dtype (CPU): all inputs must share same datatype.")
    _expect(input, *others)


@_checks(aten.native_batch_norm, aten.cudnn_batch_norm)
def _batch_norm(input: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> None:
    """Parameters in single precision go with inputs in half."""
    if weight is None or (input.dtype in _HALF and weight.dtype == torch.float32):
        return
    _expect(input, weight, bias)


@_checks(aten.nll_loss_forward)
def _nll_loss(self: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None) -> None:
    if target.dtype not in (torch.int64, torch.uint8):
        raise RuntimeError(f"expected target dtype to be Long or Byte, but got {_name(target)}")
    _expect(self, weight)


@_checks(aten.nll_loss2d_forward)
def _nll_loss2d(self: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None) -> None:
    _classes(target)
    _expect(self, weight)


@_checks(aten.multi_margin_loss, aten.multilabel_margin_loss_forward)
def _classes(target: torch.Tensor) -> None:
    if target.dtype != torch.int64:
        raise RuntimeError(f"expected scalar type Long but found {_name(target)}")


@_checks(aten.binary_cross_entropy)
def _binary_cross_entropy(self: torch.Tensor, target: torch.Tensor) -> None:
    if self.dtype != target.dtype:
        raise RuntimeError(f"Found dtype {_name(target)} but expected {_name(self)}")


@_checks(aten.index_add, aten.index_add_)
def _index_add(self: torch.Tensor, source: torch.Tensor) -> None:
    if self.dtype != source.dtype:
        found = f"self ({_name(self)}) and source ({_name(source)})"
        raise RuntimeError(f"index_add_(): {found} must have the same scalar type")


@_checks(aten.index_put, aten.index_put_, aten._index_put_impl_)
def _index_put(self: torch.Tensor, values: torch.Tensor) -> None:
    if self.dtype != values.dtype:
        found = f"{_name(self)} for the destination and {_name(values)} for the source"
        raise RuntimeError(f"Index put requires the source and destination dtypes match, got {found}.")
