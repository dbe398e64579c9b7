"""Which kernel CUDA takes for ``scaled_dot_product_attention``, and what it is called with. Knows torch's conditions.

They are those of ``can_use_..._attention`` in ATen's ``transformers/cuda/sdp_utils.cpp``, as of torch 2.13 and 2.14.1
with cuDNN 9.2x, without what only nested tensors and ROCm need.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from ....gpus import GPU
from ....torch_internals.versions import SINCE_2_14
from ..kernels.dtype_checks import in_cpp
from .patches import Kernels

aten = torch.ops.aten
Kernel = Literal["flash", "efficient", "cudnn", "math"]

_HALF = (torch.float16, torch.bfloat16)
_CUDNN_MOST_HEADS = 65535  # also of a batch
_SOUND_CUDNN = 91501
_NAMES: dict[int, Kernel] = {
    SDPBackend.FLASH_ATTENTION.value: "flash",
    SDPBackend.EFFICIENT_ATTENTION.value: "efficient",
    SDPBackend.CUDNN_ATTENTION.value: "cudnn",
    SDPBackend.MATH.value: "math",
}


@dataclass(frozen=True)
class Attention:
    """One call of it."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    dropout: float
    is_causal: bool
    gqa: bool

    @property
    def trains(self) -> bool:
        """Whether a backward may follow."""
        return torch.is_grad_enabled() and any(each.requires_grad for each in (self.query, self.key, self.value))


def install(kernels: Kernels, gpu: GPU) -> None:
    """Replace it."""

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        call = Attention(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa)
        _check_types(call)
        return _run(call, choose(call, gpu), scale)

    kernels.composite(aten.scaled_dot_product_attention.default, attend)


def _check_types(call: Attention) -> None:
    """As ``validate_sdpa_input``. Raises: RuntimeError."""
    kind, mask = call.query.dtype, call.mask
    if any(each.dtype != kind for each in _inputs(call)):
        query, key, value = map(in_cpp, _inputs(call))
        raise RuntimeError(
            "Expected query, key, and value to have the same dtype, but got "
            f"query.dtype: {query} key.dtype: {key} and value.dtype: {value} instead."
        )
    if mask is not None and mask.dtype not in (torch.bool, torch.float32, kind):
        raise RuntimeError(
            "Expected attn_mask dtype to be bool or float or to match query dtype, but got "
            f"attn_mask.dtype: {in_cpp(mask)} and  query.dtype: {in_cpp(call.query)} instead."
        )


def choose(call: Attention, gpu: GPU) -> Kernel:
    """The kernel that is taken on a card, by torch's order, settings and conditions.

    Raises:
        RuntimeError: none can be used, as torch says it.
    """
    if SINCE_2_14 and all(each.dim() == 3 for each in (call.query, call.key, call.value)):
        call = _batched(call)
    conditions: dict[Kernel, Callable[[Attention, GPU], bool]] = {
        "flash": _can_flash,
        "efficient": _can_efficient,
        "cudnn": _can_cudnn,
        "math": lambda call, gpu: _is_on("math"),
    }
    for kernel in _order(gpu):
        if conditions[kernel](call, gpu):
            return kernel
    raise RuntimeError("No available kernel. Aborting execution.")


def _order(gpu: GPU) -> list[Kernel]:
    numbers = torch._C._get_sdp_priority_order()
    order = [_NAMES[number] for number in numbers if number in _NAMES]
    # Where nobody has set an order, torch puts cuDNN first when it sees such a card, and since 2.10 a cuDNN without a
    # fault of older ones; 2.8.0 and 2.9.1 don't do so with theirs, 9.10. Without CUDA, the cuDNN of today's is assumed.
    is_untouched = order == ["flash", "efficient", "math", "cudnn"]
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call] # torch's
    is_sound = cudnn is None or cudnn >= _SOUND_CUDNN
    if (
        is_untouched
        and is_sound
        and gpu.capability[0] in (9, 10)
        and os.environ.get("TORCH_CUDNN_SDPA_DEPRIORITIZED") != "1"
    ):
        return ["cudnn", "flash", "efficient", "math"]
    return order


def _batched(call: Attention) -> Attention:
    mask = call.mask
    while mask is not None and mask.dim() < 4:
        mask = mask.unsqueeze(0)
    query, key, value = (each.unsqueeze(0) for each in (call.query, call.key, call.value))
    return dataclasses.replace(call, query=query, key=key, value=value, mask=mask)


# -- conditions --------------------------------------------------------------------------------------------------------


def _can_flash(call: Attention, gpu: GPU) -> bool:
    head = call.query.shape[-1]
    too_wide_to_train = gpu.capability[0] in (8, 12) and gpu.capability != (8, 0) and head > 192
    return (
        _is_on("flash")
        and _is_4d(call)
        and call.mask is None
        and head == call.key.shape[-1] == call.value.shape[-1]
        and head <= 256
        and gpu.capability >= (8, 0)
        and not (call.trains and too_wide_to_train and (head <= 224 or call.dropout > 0))
        and not (call.is_causal and call.query.shape[-2] != call.key.shape[-2])
        and _is_one_of(call, _HALF)
        and _heads_match(call)
        and _has_lengths(call)
        and _is_dense(call, or_head_of_1=True)
    )


def _can_efficient(call: Attention, gpu: GPU) -> bool:
    alignment = _alignment(call.query.dtype, gpu)
    step = alignment * call.query.element_size()
    return (
        _is_on("mem_efficient")
        and _is_4d(call)
        and call.query.shape[-1] == call.key.shape[-1]
        and all(each.shape[-1] > 0 and each.shape[-1] % alignment == 0 for each in (call.query, call.value))
        and (gpu.capability < (8, 0) or not SINCE_2_14 or all(_starts_at(each, step) for each in _inputs(call)))
        and _has_lengths(call)
        and _is_dense(call, or_head_of_1=False)
        and _heads_match(call, with_groups=SINCE_2_14)
        and _is_one_of(call, (torch.float16, torch.float32, *([torch.bfloat16] if gpu.capability >= (8, 0) else [])))
    )


def _can_cudnn(call: Attention, gpu: GPU) -> bool:
    return (
        _is_on("cudnn")
        and _is_4d(call)
        and not (torch.are_deterministic_algorithms_enabled() and not _only_warns())
        and _is_one_of(call, _HALF)
        and _has_plain_mask(call)
        and gpu.capability >= (8, 0)
        and (call.dropout * 16).is_integer()
        and _has_lengths(call)
        and _is_dense(call, or_head_of_1=True)
        and _heads_match(call)
        and _has_cudnn_shapes(call, gpu)
    )


def _has_cudnn_shapes(call: Attention, gpu: GPU) -> bool:
    batch, heads, length, inner = call.query.shape
    outer = call.value.shape[-1]
    return (
        max(batch, heads) <= _CUDNN_MOST_HEADS
        and _has_cudnn_heads(inner, outer, gpu, trains=call.trains)
        and inner % 8 == outer % 8 == 0
        and call.key.shape[-2] != 1
        and not (length == 1 and (call.dropout or gpu.capability[0] == 10))
    )


def _has_cudnn_heads(inner: int, outer: int, gpu: GPU, *, trains: bool) -> bool:
    if max(inner, outer) <= 128:
        return True
    if gpu.capability[0] not in (9, 10):
        return False
    if not SINCE_2_14 or trains:
        return (inner, outer) == (192, 128) or (SINCE_2_14 and inner == outer == 256)
    return max(inner, outer) <= 256


def _is_on(kernel: str) -> bool:
    """Whether the user's settings allow a kernel."""
    return bool(getattr(torch.backends.cuda, f"{kernel}_sdp_enabled")())


def _inputs(call: Attention) -> tuple[torch.Tensor, ...]:
    return call.query, call.key, call.value


def _is_4d(call: Attention) -> bool:
    return all(each.dim() == 4 for each in _inputs(call))


def _is_one_of(call: Attention, dtypes: tuple[torch.dtype, ...]) -> bool:
    return call.query.dtype in dtypes and all(each.dtype == call.query.dtype for each in _inputs(call))


def _has_lengths(call: Attention) -> bool:
    return call.query.shape[-2] > 0 and call.key.shape[-2] > 0


def _is_dense(call: Attention, *, or_head_of_1: bool) -> bool:
    dense = all(each.stride(-1) == 1 for each in _inputs(call)) or (or_head_of_1 and call.query.shape[-1] == 1)
    return dense and (call.mask is None or call.mask.stride(-1) == 1)


def _heads_match(call: Attention, *, with_groups: bool = True) -> bool:
    if len({each.shape[0] for each in _inputs(call)}) > 1:
        return False
    ours, keys, values = (each.shape[-3] for each in _inputs(call))
    if call.gqa and with_groups:
        return keys == values and ours % keys == 0
    return ours == keys == values or (SINCE_2_14 and ours > 0 and keys == values == 1)


def _has_plain_mask(call: Attention) -> bool:
    mask = call.mask
    if mask is None:
        return True
    if mask.requires_grad or mask.dim() not in (2, 4):
        return False
    full = (*call.query.shape[:3], call.key.shape[2])
    return all(size in (1, most) for size, most in zip(reversed(mask.shape), reversed(full), strict=False))


def _starts_at(tensor: torch.Tensor, step: int) -> bool:
    return not tensor.numel() or int(tensor.storage_offset()) * tensor.element_size() % step == 0


def _only_warns() -> bool:
    return torch.is_deterministic_algorithms_warn_only_enabled()


def _alignment(dtype: torch.dtype, gpu: GPU) -> int:
    """Elements in which the efficient kernel's head dimension must come."""
    has_tensor_cores = gpu.capability >= (8, 0) or (gpu.capability >= (7, 0) and dtype in _HALF)
    least = 4 if gpu.capability >= (8, 0) else 1
    return max(least, 8 if dtype in _HALF else 4) if has_tensor_cores else least


# -- what is called ----------------------------------------------------------------------------------------------------


def _run(call: Attention, kernel: Kernel, scale: float | None) -> torch.Tensor:
    is_unbatched = kernel != "math" and call.query.dim() == 3
    if is_unbatched:
        call = _batched(call)
    out = _run_batched(call, kernel, scale)
    return out.squeeze(0) if is_unbatched else out


def _run_batched(call: Attention, kernel: Kernel, scale: float | None) -> torch.Tensor:
    mask = _additive(call.mask, call.query.dtype)
    out: torch.Tensor
    if kernel == "flash":
        width = call.query.shape[-1]
        scale = 1 / math.sqrt(width) if scale is None else scale
        padded = [F.pad(each, (0, -width % 8)) if width % 8 else each for each in _inputs(call)]
        out = aten._scaled_dot_product_flash_attention(*padded, call.dropout, call.is_causal, False, scale=scale)[0]
        return out[..., :width] if width % 8 else out
    if kernel == "cudnn":
        return aten._scaled_dot_product_cudnn_attention(  # type: ignore[no-any-return] # an operator
            *_inputs(call), mask, call.trains, call.dropout, call.is_causal, False, scale=scale
        )[0]
    if kernel == "efficient":
        if mask is not None:
            mask = _aligned(mask).expand(*call.query.shape[:3], call.key.shape[2])
        return aten._scaled_dot_product_efficient_attention(  # type: ignore[no-any-return] # an operator
            *_inputs(call), mask, call.trains, call.dropout, call.is_causal, scale=scale
        )[0]
    return aten._scaled_dot_product_attention_math(  # type: ignore[no-any-return] # an operator
        *_inputs(call), mask, call.dropout, call.is_causal, None, scale=scale, enable_gqa=call.gqa
    )[0]


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    if mask is None or mask.dtype is not torch.bool:
        return mask
    kept, hidden = (torch.scalar_tensor(value, dtype=dtype, device=mask.device) for value in (0.0, -math.inf))
    return torch.where(mask, kept, hidden)


def _aligned(mask: torch.Tensor) -> torch.Tensor:
    """A mask whose rows the efficient kernel can read: they begin at multiples of 8 elements."""
    if mask.stride(-1) == 1 and not any(stride % 8 for stride in mask.stride()[:-1]):
        return mask
    length = mask.shape[-1]
    return F.pad(mask, (0, 8 - length % 8))[..., :length]
