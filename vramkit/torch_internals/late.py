"""Parts of torch that are imported late: who waits for one is told when it is there. Knows Python's imports."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def when_imported(stack: ExitStack, name: str, tell: Callable[[ModuleType], object]) -> None:
    """Tell of a module now, or as soon as somebody imports it: to import it here would cost those who need none.

    Args:
        stack: ends the waiting.
        name: of the module.
        tell: gets it.
    """
    if name in sys.modules:
        tell(sys.modules[name])
        return
    finder = _Finder(name, tell)
    for _ in range(2):  # an interrupt may end the one, and the other does it then
        stack.callback(finder.leave)
    sys.meta_path.insert(0, finder)


class _Finder(MetaPathFinder):
    """Waits for one module, and leaves it to the others to find it."""

    def __init__(self, name: str, tell: Callable[[ModuleType], object]) -> None:
        self._name = name
        self._tell = tell

    def leave(self) -> None:
        sys.meta_path[:] = [each for each in sys.meta_path if each is not self]

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == self._name else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                if self in sys.meta_path:
                    self.leave()
                    self._tell(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign] # of this one loader
        return spec
