"""``torch.distributed.checkpoint`` of a rank that is alone: it saves and loads its own part. Knows when that module
comes; what is replaced in it, ``torch_internals`` knows.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from ..torch_internals.distributed import checkpoint_alone

_NAME = "torch.distributed.checkpoint"


def install() -> None:
    """Have it done when the module is imported, or now if it has been."""
    if _NAME in sys.modules:
        checkpoint_alone(sys.modules[_NAME])
    else:
        sys.meta_path.insert(0, _WhenItComes())


class _WhenItComes:
    """Finds the module as the other finders do; once."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(_NAME)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_replace(module: ModuleType) -> None:
                load(module)
                checkpoint_alone(module)

            spec.loader.exec_module = load_and_replace  # type: ignore[method-assign] # on this one object
        return spec
