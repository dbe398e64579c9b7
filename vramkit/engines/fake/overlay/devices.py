"""Where tensors are, as Python sees it and as C++ does. Knows device arguments; no functions of ``torch.cuda``.

C++ asks a tensor for its device, and the device for its streams, which only a real one has; ``meta`` has none to ask
for. So a fake on the GPU is ``meta`` to C++ and ``cuda:0`` to Python, and both names are taken for the GPU here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._device import _device_constructors

from ....torch_internals.replaced import HAS_DEVICES
from .patches import put, put_data, runs_here

CUDA = torch.device("cuda", 0)
META = torch.device("meta")


def install(stack: ExitStack) -> None:
    """Replace what has to do with devices until the stack closes."""
    _install_fakes(stack)
    _install_moves(stack)
    install_makers(stack)


def install_makers(stack: ExitStack) -> None:
    """Replace what makes a tensor of data until the stack closes: it is made on the host, and moved.

    In C++ that makes a tensor of the device that no mode sees, so fakes need it beside a device too.
    """
    _device_constructors()  # torch lists them once for `set_default_device`, and has to find its own
    for name in ("tensor", "as_tensor", "asarray"):
        put(stack, torch, name, _made_on_the_host(getattr(torch, name)))
    put(stack, torch.Tensor, "new_tensor", _made_on_the_host(torch.Tensor.new_tensor, like_first=True))


def _install_fakes(stack: ExitStack) -> None:
    make = torch.Tensor._make_subclass

    def make_subclass(cls: Any, data: Any, requires_grad: bool = False, **options: Any) -> Any:
        keys = options.get("device_for_backend_keys")
        if keys is not None and keys.type == "cuda":
            options["dispatch_device"] = False  # so C++ sees the device of the data: meta
        return make(cls, data, requires_grad, **options)

    def is_cuda(tensor: FakeTensor) -> bool:
        return tensor.fake_device.type == "cuda"

    put(stack, torch.Tensor, "_make_subclass", staticmethod(make_subclass))
    _install_normalized(stack)
    put(stack, FakeTensor, "is_cuda", property(is_cuda))
    put(stack, FakeTensor, "is_meta", property(lambda tensor: tensor.fake_mode.in_kernel_invocation))
    put(stack, FakeTensor, "get_device", lambda tensor: 0 if is_cuda(tensor) else -1)
    # The fake mode's memory of results must not be that of a process without an overlay.
    put(stack, FakeTensorMode, "_cached_dispatch_impl", _dispatch_anew)


def _install_normalized(stack: ExitStack) -> None:
    """Let a fake's device be the GPU wherever one of its names is given."""
    if not HAS_DEVICES:
        put_data(stack, FakeTensor, "fake_device", _Device())
        return
    normalize = FakeTensor._normalize_fake_device

    def normalized(device: torch.device) -> torch.device:
        return CUDA if device.type in ("cuda", "meta") else normalize(device)

    put(stack, FakeTensor, "_normalize_fake_device", staticmethod(normalized))


class _Device:
    """A plain attribute, the device of a fake, that is normalized when it is set. It is read as before: what has no
    ``__get__`` gives way to the object's own."""

    def __set__(self, tensor: FakeTensor, device: torch.device) -> None:
        is_ours = runs_here() and device.type in ("cuda", "meta")
        vars(tensor)["fake_device"] = CUDA if is_ours else device


def _dispatch_anew(mode: FakeTensorMode, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    return mode._dispatch_impl(func, types, args, kwargs)


def _for_cpp(value: Any) -> Any:
    """A device argument as C++ may see it."""
    if isinstance(value, torch.device):
        return META if value.type == "cuda" else value
    if isinstance(value, str) and value.partition(":")[0] == "cuda":
        return META
    return value


def _install_moves(stack: ExitStack) -> None:
    tensor_to = torch.Tensor.to

    def to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args:
            first = META if isinstance(args[0], int) and not isinstance(args[0], bool) else args[0]
            args = (first, *args[1:])
        return tensor_to(tensor, *map(_for_cpp, args), **{name: _for_cpp(value) for name, value in kwargs.items()})

    def cuda(
        tensor: torch.Tensor, device: Any = None, non_blocking: bool = False, memory_format: Any = torch.preserve_format
    ) -> torch.Tensor:
        return tensor_to(tensor, META, non_blocking=non_blocking, memory_format=memory_format)

    set_item = torch.Tensor.__setitem__

    def assign(tensor: FakeTensor, index: Any, value: Any) -> None:
        if isinstance(value, (bool, int, float)) and tensor.fake_device.type == "cuda":
            value = torch.tensor(value, dtype=tensor.dtype, device="cpu")  # as C++ has it for CUDA
        set_item(tensor, index, value)

    put(stack, FakeTensor, "__setitem__", assign)
    put(stack, FakeTensor, "record_stream", lambda tensor, stream: None)
    put(stack, torch.Tensor, "to", to)
    put(stack, torch.Tensor, "cuda", cuda)
    put(stack, torch.Tensor, "pin_memory", lambda tensor, device=None: tensor)
    group = torch._C._group_tensors_by_device_and_dtype

    def grouped(*args: Any, **kwargs: Any) -> Any:
        found = group(*args, **kwargs)
        return {(CUDA if device.type == "meta" else device, dtype): each for (device, dtype), each in found.items()}

    put(stack, torch._C, "_group_tensors_by_device_and_dtype", grouped)


def _made_on_the_host(make: Callable[..., torch.Tensor], *, like_first: bool = False) -> Callable[..., torch.Tensor]:
    def made(*args: Any, device: Any = None, requires_grad: bool = False, **kwargs: Any) -> torch.Tensor:
        source = args[0] if args else None
        if isinstance(source, torch.Tensor) and source.is_cuda and not isinstance(source, FakeTensor):
            # Another thread's. Only some of these functions have the argument.
            return make(*args, device=device, **{"requires_grad": True} if requires_grad else {}, **kwargs)
        if device is None and isinstance(source, torch.Tensor):
            device = source.device
        elif device is None and torch._C._len_torch_function_stack():
            device = torch.empty(0).device  # a mode may say where tensors are made
        if isinstance(source, FakeTensor) and not like_first:
            tensor = source.detach().to(dtype=kwargs.get("dtype") or source.dtype, copy=make is _tensor)
        else:
            tensor = make(*args, device="cpu", **kwargs)
        tensor = tensor if device is None else tensor.to(device)
        return tensor.requires_grad_() if requires_grad else tensor

    return made


_tensor = torch.tensor
