"""torch's private names of dispatch: modes, what switches them off, and keys. Knows no operator and no tensor."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from .names import look_up

if TYPE_CHECKING:
    from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
else:
    TorchDispatchMode = look_up("torch.utils._python_dispatch.TorchDispatchMode", "profile on the CPU", "fake engine")

without_modes: Callable[[], AbstractContextManager[object]] = look_up(
    "torch.utils._python_dispatch._disable_current_modes", "fake engine"
)
"""Without the dispatch modes of this thread, while it holds."""

below_python: Callable[[], AbstractContextManager[object]] = look_up("torch._C._DisableTorchDispatch", "fake engine")
"""Without dispatch to Python, neither modes nor subclasses, while it holds."""

excluding: Callable[[Any, bool], AbstractContextManager[object]] = look_up(
    "torch._C._SetExcludeDispatchKeyGuard", "fake engine"
)
"""Whether operators pass by a dispatch key, while it holds."""

has_kernel: Callable[[str, str], bool] = look_up(
    "torch._C._dispatch_has_kernel_for_dispatch_key", "values", fallback=lambda _operator, _key: False
)
"""Whether an operator, by name and overload, has a kernel of its own for a dispatch key."""

_parsed: Callable[[str], Any] = look_up("torch._C._dispatch_key_parse", "values", fallback=None)
_higher_order: dict[str, Any] = look_up("torch._ops._higher_order_ops", "values", fallback={})
_passed_by: list[Any] = look_up("torch._ops._HIGHER_ORDER_OP_DEFAULT_FALLTHROUGH_DISPATCH_KEYS", "values", fallback=[])


def pass_higher_order(key: str) -> None:
    """Let operators that take functions (``flex_attention``, ``cond``) pass by a key, for which none has a kernel.

    Args:
        key: its name in C++.
    """
    if _parsed is not None:
        parsed = _parsed(key)
        _passed_by.append(parsed)  # for those that are made later
        for operator in _higher_order.values():
            operator.fallthrough(parsed)


VIEWS: Any = look_up("torch._C.DispatchKey.ADInplaceOrView", "fake engine")
"""The key of what remembers views and versions."""

# -- function modes, such as that of torch.set_default_device ---------------------------------------------------------

function_modes: Callable[[], list[Any]] = look_up("torch.overrides._get_current_function_mode_stack", "programs")
"""Those of this thread, the innermost last."""

function_mode_count: Callable[[], int] = look_up("torch._C._len_torch_function_stack", "fake engine")
pop_function_mode: Callable[[], Any] = look_up("torch._C._pop_torch_function_stack", "fake engine")
push_function_mode: Callable[[Any], None] = look_up("torch._C._push_on_torch_function_stack", "fake engine")

if TYPE_CHECKING:
    from torch.utils._device import DeviceContext as DeviceContext
else:
    DeviceContext = look_up("torch.utils._device.DeviceContext", "programs")
"""The mode of a device that tensors are made on, unless a call names another one."""
