"""torch's own settings, carried from one process to another: those that decide which kernels run, and what is compiled.

Knows their names; not those of the compiler's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributions import Distribution

from ..torch_internals import compiler_settings
from ..torch_internals.modules import validates_arguments

_ATTRIBUTES = (
    "backends.fp32_precision",
    "backends.cuda.matmul.fp32_precision",
    "backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
    "backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
    "backends.cudnn.fp32_precision",
    "backends.cudnn.conv.fp32_precision",
    "backends.cudnn.rnn.fp32_precision",
    "backends.mkldnn.matmul.fp32_precision",
    "backends.cudnn.enabled",
    "backends.cudnn.benchmark",
    "backends.cudnn.benchmark_limit",
    "backends.cudnn.deterministic",
    "utils.deterministic.fill_uninitialized_memory",
)


def _set_deterministic(value: Any) -> None:
    torch.use_deterministic_algorithms(value > 0, warn_only=value == 1)


def _set_allow_tf32(value: Any) -> None:
    torch.backends.cudnn.allow_tf32 = value


def _anomaly() -> tuple[bool, bool]:
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


# name -> how to read it, how to set it
_FUNCTIONS: dict[str, tuple[Any, Any]] = {
    # The two before fp32_precision, which is part of what they set. torch remembers them beside it, and refuses to read
    # them where they don't agree with it.
    "float32_matmul_precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "cudnn_allow_tf32": (lambda: torch.backends.cudnn.allow_tf32, _set_allow_tf32),
    "anomaly": (_anomaly, lambda value: torch.set_anomaly_enabled(*value)),
    "default_dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "deterministic": (torch.get_deterministic_debug_mode, _set_deterministic),
    "validate_args": (validates_arguments, Distribution.set_default_validate_args),
    "flash_sdp": (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    "mem_efficient_sdp": (
        torch.backends.cuda.mem_efficient_sdp_enabled,
        torch.backends.cuda.enable_mem_efficient_sdp,
    ),
    "math_sdp": (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    "cudnn_sdp": (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
    "swap_params": (
        torch.__future__.get_swap_module_params_on_conversion,
        torch.__future__.set_swap_module_params_on_conversion,
    ),
    "overwrite_params": (
        torch.__future__.get_overwrite_module_params_on_conversion,
        torch.__future__.set_overwrite_module_params_on_conversion,
    ),
    "compiler": (compiler_settings.read, compiler_settings.apply),
}


_UNKNOWN = object()


def read() -> dict[str, object]:
    """Every setting of this process that this torch has, in the order in which they can be applied."""
    found = {name: _read(name) for name in (*_FUNCTIONS, *_ATTRIBUTES)}
    return {name: value for name, value in found.items() if value is not _UNKNOWN}


def apply(settings: Mapping[str, object]) -> None:
    """Set what is different here."""
    for name, value in settings.items():
        if _read(name) == value:
            continue
        if name in _FUNCTIONS:
            _FUNCTIONS[name][1](value)
        else:
            setattr(_owner(name), name.rpartition(".")[2], value)


def _read(name: str) -> object:
    try:
        return _FUNCTIONS[name][0]() if name in _FUNCTIONS else getattr(_owner(name), name.rpartition(".")[2])
    except (AttributeError, RuntimeError):
        return _UNKNOWN  # another torch, or one without that backend; or see float32_matmul_precision


def _owner(name: str) -> Any:
    owner: Any = torch
    for part in name.split(".")[:-1]:
        owner = getattr(owner, part)
    return owner
