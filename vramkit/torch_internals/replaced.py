"""The private names that `vramkit.engines.fake.overlay` uses and replaces under their own names, as nobody else may.

Knows which they are, so that they can be asked for before a program runs; what takes their place, the overlay knows.
Imported only where an operator is to run on fakes.
"""

from __future__ import annotations

from typing import Any

from .fakes import FakeTensor
from .names import look_up

BESIDE_A_DEVICE = (
    "torch._C.DispatchKey.CompositeImplicitAutograd",
    "torch._C._DisableAutocast",
    "torch._C._dispatch_has_kernel_for_dispatch_key",
    "torch._C._functions.UndefinedGrad",
    "torch._C._functorch.peek_interpreter_stack",
    "torch._C._get_obj_in_tls",
    "torch._C._is_key_in_tls",
    "torch._C._stash_obj_in_tls",
    "torch._VF._pack_padded_sequence",
    "torch._cudnn_rnn_flatten_weight",
    "torch._dynamo.eval_frame._callback_from_stance",
    "torch._subclasses.fake_impls.op_implementations_dict",
    "torch._use_cudnn_rnn_flatten_weight",
    "torch.autograd._get_sequence_nr",
    "torch.library.Library._destroy",
    "torch.ops.aten.add.Tensor._op_dk",
    "torch.utils._device._device_constructors",
    "torch.utils._python_dispatch._get_current_dispatch_mode_stack",
)
"""What fakes lack even where there is a CUDA device."""

WITHOUT_A_DEVICE = (
    "torch.Tensor._is_view",
    "torch._C.Generator",
    "torch._C._AutoDispatchBelowAutograd",
    "torch._C._conv_determine_backend_memory_format",
    "torch._C._dispatch_get_all_op_names",
    "torch._C._get_sdp_priority_order",
    "torch._C._group_tensors_by_device_and_dtype",
    "torch._subclasses.fake_tensor.FakeTensorMode._cached_dispatch_impl",
    "torch._subclasses.fake_tensor.FakeTensorMode._dispatch_impl",
    "torch.cuda._exchange_device",
    "torch.cuda._initialized",
    "torch.cuda._lazy_call",
    "torch.cuda._lazy_init",
    "torch.cuda._maybe_exchange_device",
    "torch.cuda.nvtx._nvtx",
    "torch.ops.aten.add.Tensor._schema",
)
"""CUDA's choices in a process that has no CUDA device."""

DEVICES = "torch._subclasses.fake_tensor.FakeTensor._normalize_fake_device"
"""Likewise, where a fake's device passes through it; before torch 2.12 the device is a plain attribute."""

for _path in BESIDE_A_DEVICE:
    look_up(_path, "fake engine")
for _path in WITHOUT_A_DEVICE:
    look_up(_path, "fake engine without CUDA")
_instead: dict[str, Any] = {} if "fake_device" in vars(FakeTensor) else {"fallback": None}
_devices: object = look_up(DEVICES, "fake engine without CUDA", versions="2.12 to 2.14", **_instead)
HAS_DEVICES: bool = _devices is not None
"""Whether they do; else whoever replaces it replaces the attribute."""
