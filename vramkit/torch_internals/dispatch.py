"""torch's private names of dispatch: modes, what switches them off, and keys. Knows no operator's meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .names import look_up

if TYPE_CHECKING:
    from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
else:
    TorchDispatchMode = look_up("torch.utils._python_dispatch.TorchDispatchMode", "profile on the CPU", "fake engine")
