"""torch's private names of fake tensors: their classes, what they raise, and what makes one. Knows no operator."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from .names import look_up, place_of

_FILE = "torch._subclasses.fake_tensor"

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import DataDependentOutputException as DataDependentOutputException
    from torch._subclasses.fake_tensor import DynamicOutputShapeException as DynamicOutputShapeException
    from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
    from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
    from torch._subclasses.fake_tensor import UnsupportedOperatorException as UnsupportedOperatorException
else:
    FakeTensor = look_up(f"{_FILE}.FakeTensor", "fake engine")
    FakeTensorMode = look_up(f"{_FILE}.FakeTensorMode", "fake engine", "closed forms")
    DataDependentOutputException = look_up(f"{_FILE}.DataDependentOutputException", "fake engine")
    DynamicOutputShapeException = look_up(f"{_FILE}.DynamicOutputShapeException", "fake engine")
    UnsupportedOperatorException = look_up(f"{_FILE}.UnsupportedOperatorException", "fake engine")

LOGGER = logging.getLogger(_FILE)
"""Where failures of operators on fakes are told."""

BEGINS_CUDA = place_of(f"{_FILE}.init_gpu_context", "fake engine")
"""What makes a CUDA context for a fake on the device."""

RUNS_WITHOUT_FAKES = place_of(f"{_FILE}.FakeTensorMode.can_run_unsafe_fallback", "fake engine")
"""Whether a mode runs an operator for real that has no fake kernel."""

CONVERT = place_of(f"{_FILE}.FakeTensorConverter.from_real_tensor", "fake engine")
"""Makes a fake of a real tensor that an operator takes beside fakes."""

FOREACH_OF_OPTIMIZERS = place_of("torch.optim.optimizer._foreach_supported_types", "fake engine")
"""Classes of tensors of which optimizers take many at once."""

FOREACH = place_of("torch.utils._foreach_utils._foreach_supported_types", "fake engine")
"""The same for gradients that are clipped or scaled."""

_TENSOR_CLASS = place_of("torch.Tensor._make_subclass", "fake engine")
_refuse_data_ptr: Callable[[torch.Tensor], None] = look_up("torch._C._set_throw_on_mutable_data_ptr", "fake engine")


def make_fake(meta: torch.Tensor, device: torch.device) -> Any:
    """A fake tensor of ``meta``'s shape on a device, without the mode and the other attributes that one has.

    What makes it is asked of ``torch.Tensor`` each time: the overlay replaces it.
    """
    made = getattr(torch.Tensor, _TENSOR_CLASS.name)(
        FakeTensor, meta, False, dispatch_device=True, device_for_backend_keys=device
    )
    _refuse_data_ptr(made)
    return made


def _is_dense(tensor: torch.Tensor) -> bool:
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return tensor.numel() == 0
            expected *= size
    return True


is_dense: Callable[[torch.Tensor], bool] = look_up(
    "torch._prims_common.is_non_overlapping_and_dense_or_false",
    "fake engine",
    versions="2.11 to 2.14",
    fallback=_is_dense,
)
"""Whether every element has a place of its own, and no gaps are between them."""

memory_format_of: Callable[[torch.Tensor], torch.memory_format] = look_up(
    "torch._prims_common.suggest_memory_format", "fake engine"
)
"""The memory format that CUDA takes a tensor's strides for."""
