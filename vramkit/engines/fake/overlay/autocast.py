"""``torch.autocast("cuda")`` for tensors that C++ doesn't take for CUDA's. Knows which operators are cast, and how.

Which operators have a rule is asked of torch. Of the rules those are written down here that are not the commonest one,
which is to compute in 32 bits.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch

from .patches import Kernels, put


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_HALF = _names("""
    _convolution _convolution.deprecated conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d.input
    conv_transpose3d.input convolution cudnn_convolution cudnn_convolution_transpose prelu addmm addmv addr
    matmul einsum mm mv linalg_vecdot linear addbmm baddbmm bmm chain_matmul linalg_multi_dot
    _thnn_fused_lstm_cell _thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    _scaled_dot_product_flash_attention scaled_dot_product_attention
""")
"""Computed in autocast's type."""
_FLOAT_BY_ARGUMENT = _names("""
    prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm linalg_matrix_norm
    linalg_matrix_norm.str_ord sum sum.dim_IntList
""")
"""Told to give 32 bits, unless they are told what to give."""
_FLOAT_BY_OVERLOAD = {"norm.Scalar": "ScalarOpt_dtype", "norm.ScalarOpt_dim": "ScalarOpt_dim_dtype"}
"""Likewise, by another overload."""
_WIDEST = _names("""
    addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add
""")
"""Computed in the widest type that is among the arguments."""
_RECURRENT = "_cudnn_rnn"
"""Left to others: its weights are cast into one tensor."""

_Cache = dict[int, tuple["weakref.ref[torch.Tensor]", torch.Tensor]]


@functools.cache
def rules() -> dict[str, Callable[[Any, Cast], Callable[..., Any]]]:
    """Every operator that torch casts on CUDA, with the rule for it."""
    found: dict[str, Callable[[Any, Cast], Callable[..., Any]]] = {}
    for full_name in torch._C._dispatch_get_all_op_names():
        space, _, name = full_name.partition("::")
        if space != "aten" or name == _RECURRENT or not _has_rule(full_name):
            continue
        if name in _HALF:
            found[name] = _half
        elif name in _FLOAT_BY_ARGUMENT:
            found[name] = _float_by_argument
        elif name in _FLOAT_BY_OVERLOAD:
            found[name] = _float_by_overload
        elif name in _WIDEST:
            found[name] = _widest
        else:
            found[name] = _refuse if name == "binary_cross_entropy" else _float
    return found


def _has_rule(name: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, "AutocastCUDA")


def install(kernels: Kernels, stack: ExitStack) -> None:
    """Replace the rules."""
    cast = Cast()
    for name, rule in rules().items():
        packet, _, overload = name.partition(".")
        operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
        kernels.autocast(operator, rule(operator, cast))
    clear = torch.clear_autocast_cache

    def clear_both() -> None:
        cast.cache.clear()
        clear()

    put(stack, torch, "clear_autocast_cache", clear_both)
    stack.callback(cast.cache.clear)


class Cast:
    """Casts arguments, and keeps what became of parameters until the outermost autocast ends, as torch does."""

    def __init__(self) -> None:
        self.cache: _Cache = {}

    def all(self, values: Iterable[Any], dtype: torch.dtype) -> list[Any]:
        """Arguments with every eligible tensor in a type; the last is cast first, as compilers have it in torch."""
        return [self.one(value, dtype) for value in reversed(list(values))][::-1]

    def one(self, value: Any, dtype: torch.dtype) -> Any:
        """An argument, or a list, in a type."""
        if isinstance(value, (list, tuple)):
            return [self.one(each, dtype) for each in value]
        if not _is_eligible(value) or value.dtype is dtype:
            return value
        is_kept = (
            dtype is torch.get_autocast_dtype("cuda")
            and value.dtype is torch.float32
            and value.requires_grad
            and value.is_leaf
            and not value._is_view()
            and torch.is_autocast_cache_enabled()
            and not torch.is_inference_mode_enabled()  # there torch keeps none
        )
        if not is_kept:
            return value.to(dtype)
        known = self.cache.get(id(value))
        if known is None or known[0]() is not value:
            known = self.cache[id(value)] = weakref.ref(value), value.to(dtype)
        return known[1]


def _is_eligible(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.dtype is not torch.float64
        and value.device.type == "cuda"
    )


def _half(operator: Any, cast: Cast) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype("cuda")
        with torch._C._DisableAutocast():
            named = {name: cast.one(each, dtype) for name, each in kwargs.items()}
            return operator(*cast.all(args, dtype), **named)

    return run


def _float(operator: Any, cast: Cast) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.float32
        with torch._C._DisableAutocast():
            named = {name: cast.one(each, dtype) for name, each in kwargs.items()}
            return operator(*cast.all(args, dtype), **named)

    return run


def _float_by_argument(operator: Any, cast: Cast) -> Callable[..., Any]:
    names = [argument.name for argument in operator._schema.arguments]

    def run(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        if _is_eligible(args[0]) and given.get("dtype") is None:
            given["dtype"] = torch.float32
        with torch._C._DisableAutocast():
            return operator(**given)

    return run


def _float_by_overload(operator: Any, cast: Cast) -> Callable[..., Any]:
    packet, _, overload = operator.__name__.partition(".")
    other = getattr(getattr(torch.ops.aten, packet), _FLOAT_BY_OVERLOAD[f"{packet}.{overload}"])

    def run(tensor: torch.Tensor, p: Any = 2, *args: Any, **kwargs: Any) -> Any:
        with torch._C._DisableAutocast():
            if not _is_eligible(tensor):
                return operator(tensor, p, *args, **kwargs)
            return other(tensor, p, *args, **kwargs, dtype=torch.float32)

    return run


def _widest(operator: Any, cast: Cast) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        values = [each for value in args for each in (value if isinstance(value, (list, tuple)) else [value])]
        wide = any(_is_eligible(each) and each.dtype is torch.float32 for each in values)
        dtype = torch.float32 if wide else torch.get_autocast_dtype("cuda")
        with torch._C._DisableAutocast():
            return operator(*cast.all(args, dtype), **kwargs)

    return run


def _refuse(operator: Any, cast: Cast) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast.")

    return run
