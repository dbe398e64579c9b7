"""Which types CUDA's kernels want to be the same, and what torch says where they are not: fakes would do with any.

Knows no memory. A model that forgot autocast, or a batch that was not converted, is found out here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten
Check = Callable[..., None]
_CHECKS: dict[Any, Check] = {}
"""By operator, without its overload; called with its arguments."""

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


def check_types(func: Any, args: tuple[Any, ...]) -> None:
    """Raise what torch raises where a kernel wants types to be the same, and they are not.

    Raises:
        RuntimeError: as torch says it.
    """
    check = _CHECKS.get(func.overloadpacket)
    if check is not None:
        check(*args)


def in_cpp(tensor: torch.Tensor) -> str:
    """A tensor's type as C++ calls it, and some errors of torch's."""
    return _IN_CPP.get(tensor.dtype, str(tensor.dtype))


def _name(tensor: torch.Tensor) -> str:
    return _NAMES.get(tensor.dtype, str(tensor.dtype))


def _checks(*operators: Any) -> Callable[[Check], Check]:
    def enter(function: Check) -> Check:
        _CHECKS.update(dict.fromkeys(operators, function))
        return function

    return enter


def _expect(expected: torch.Tensor, *found: torch.Tensor | None) -> None:
    for each in found:
        if each is not None and each.dtype != expected.dtype:
            raise RuntimeError(f"expected scalar type {_name(expected)} but found {_name(each)}")


@_checks(aten.mm)
def _mm(one: torch.Tensor, other: torch.Tensor, *_: object) -> None:
    if one.dtype != other.dtype:
        found = f"{in_cpp(one)} != {in_cpp(other)}"
        raise RuntimeError(f"expected mat1 and mat2 to have the same dtype, but got: {found}")


@_checks(aten.addmm, aten._addmm_activation)
def _addmm(summand: torch.Tensor, one: torch.Tensor, other: torch.Tensor, *_: object) -> None:
    for name, tensor in (("mat1", one), ("self", summand)):
        if tensor.dtype != other.dtype:
            found = f"{_name(tensor)} and {_name(other)}"
            raise RuntimeError(f"{name} and mat2 must have the same dtype, but got {found}")


@_checks(aten.mv)
def _mv(matrix: torch.Tensor, vector: torch.Tensor) -> None:
    if matrix.dtype != vector.dtype:
        found = f"{_name(vector)}, {_name(matrix)}, and {_name(vector)}"
        raise RuntimeError(f"addmv input tensors must have the same dtype, but got {found}")


@_checks(aten.bmm, aten.grid_sampler_2d, aten.grid_sampler_3d)
def _two(one: torch.Tensor, other: torch.Tensor, *_: object) -> None:
    _expect(one, other)


@_checks(aten.convolution)
def _convolution(tensor: torch.Tensor, weight: torch.Tensor, *_: object) -> None:
    if tensor.dtype != weight.dtype:
        types = (f"(torch.cuda.{_name(each)}Tensor)" for each in (tensor, weight))
        raise RuntimeError("Input type {} and weight type {} should be the same".format(*types))


@_checks(aten.native_layer_norm)
def _layer_norm(
    tensor: torch.Tensor, shape: object, weight: torch.Tensor | None, bias: torch.Tensor | None, *_: object
) -> None:
    _expect(tensor, weight, bias)


@_checks(aten.native_group_norm)
def _group_norm(tensor: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, *_: object) -> None:
    others = [each for each in (weight, bias) if each is not None]
    if others and others[0].dtype != tensor.dtype:  # torch checks as for the CPU first
        if any(each.dtype != torch.float32 for each in others):
            raise RuntimeError("mixed dtype (CPU): expect parameter to have scalar type of Float")
        if tensor.dtype not in _HALF:
            raise RuntimeError("mixed dtype (CPU): all inputs must share same datatype.")
    _expect(tensor, *others)


@_checks(aten.native_batch_norm, aten.cudnn_batch_norm)
def _batch_norm(tensor: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, *_: object) -> None:
    """Parameters in single precision go with inputs in half."""
    if weight is None or (tensor.dtype in _HALF and weight.dtype == torch.float32):
        return
    _expect(tensor, weight, bias)


@_checks(aten.nll_loss_forward)
def _nll_loss(tensor: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, *_: object) -> None:
    if target.dtype not in (torch.int64, torch.uint8):
        raise RuntimeError(f"expected target dtype to be Long or Byte, but got {_name(target)}")
    _expect(tensor, weight)


@_checks(aten.nll_loss2d_forward)
def _nll_loss2d(tensor: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, *_: object) -> None:
    _classes(tensor, target)
    _expect(tensor, weight)


@_checks(aten.multi_margin_loss, aten.multilabel_margin_loss_forward)
def _classes(tensor: torch.Tensor, target: torch.Tensor, *_: object) -> None:
    if target.dtype != torch.int64:
        raise RuntimeError(f"expected scalar type Long but found {_name(target)}")


@_checks(aten.binary_cross_entropy)
def _binary_cross_entropy(tensor: torch.Tensor, target: torch.Tensor, *_: object) -> None:
    if tensor.dtype != target.dtype:
        raise RuntimeError(f"Found dtype {_name(target)} but expected {_name(tensor)}")


@_checks(aten.index_add, aten.index_add_)
def _index_add(tensor: torch.Tensor, dim: int, index: torch.Tensor, source: torch.Tensor, *_: object) -> None:
    if tensor.dtype != source.dtype:
        found = f"self ({_name(tensor)}) and source ({_name(source)})"
        raise RuntimeError(f"index_add_(): {found} must have the same scalar type")


@_checks(aten.index_put, aten.index_put_, aten._index_put_impl_)
def _index_put(tensor: torch.Tensor, indices: object, values: torch.Tensor, *_: object) -> None:
    if tensor.dtype != values.dtype:
        found = f"{_name(tensor)} for the destination and {_name(values)} for the source"
        raise RuntimeError(f"Index put requires the source and destination dtypes match, got {found}.")
