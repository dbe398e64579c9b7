"""What a program has set for ``torch.compile`` in torch's modules of settings, and the same in another process.

Knows these modules, and how to tell what was set in them from what was always so.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from copy import deepcopy
from importlib import import_module
from typing import Any

_MODULES = (
    "torch.compiler.config", "torch.fx.experimental._config", "torch._functorch.config", "torch._dynamo.config",
    "torch._inductor.config",
)  # fmt: skip
_OF_A_PROCESS = {("torch.compiler.config", "cache_key_tag")}
"""Which keeps a virtual GPU's kernels apart from a real one's."""
_PLAIN = (bool, int, float, str, bytes, type(None))

Settings = Mapping[str, Mapping[str, object]]
"""Values by the names of a module and of a setting in it."""


def read() -> Settings:
    """What was set in this process, of values that any process can be sent: no functions, and no objects."""
    found = {
        name: {key: deepcopy(value) for key, value in _set_in(name).items() if _is_plain(value)} for name in _MODULES
    }
    return {name: values for name, values in found.items() if values}


def unsendable() -> list[str]:
    """The names of settings that `read` leaves out: passes over graphs that are a user's functions, above all."""
    return [f"{name}.{key}" for name in _MODULES for key, value in _set_in(name).items() if not _is_plain(value)]


def apply(settings: Settings) -> None:
    """Set the same here. The compiler is imported where there is anything to set, which takes a second."""
    for name, values in settings.items():
        module = import_module(name)
        for key, value in values.items():
            if getattr(module, key) != value:
                setattr(module, key, value)


def _set_in(name: str) -> Mapping[str, object]:
    """What is not in a module of settings what torch made it."""
    module: Any = sys.modules.get(name)
    return {
        key: getattr(module, key)
        for key, entry in getattr(module, "_config", {}).items()
        if not module._is_default(key) and entry.alias is None and (name, key) not in _OF_A_PROCESS
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, (*value, *value.values())))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
