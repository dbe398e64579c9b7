"""Modules that are imported late: who waits for one is told when it is there. Knows Python's imports."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def when_imported(name: str, tell: Callable[[ModuleType], object], stack: ExitStack | None = None) -> None:
    """Tell of a module now, or as soon as somebody imports it: to import it here would cost those who need none.

    Args:
        name: of the module.
        tell: gets it.
        stack: ends the waiting; None: nothing does.
    """
    if name in sys.modules:
        tell(sys.modules[name])
        return
    finder = _Finder(name, tell)
    if stack is not None:
        for _ in range(2):  # an interrupt may end the one, and the other does it then
            stack.callback(finder.leave)
    sys.meta_path.insert(0, finder)


class _Finder(MetaPathFinder):
    """Waits for one module, and leaves it to the others to find it."""

    def __init__(self, name: str, tell: Callable[[ModuleType], object]) -> None:
        self._name = name
        self._tell = tell
        self._waits = True

    def leave(self) -> None:
        self._waits = False
        self._step_aside()

    def _step_aside(self) -> None:
        sys.meta_path[:] = [each for each in sys.meta_path if each is not self]

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        self._step_aside()  # others may wait for it, too
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                if self._waits:
                    self._tell(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign] # of this one loader
        return spec
