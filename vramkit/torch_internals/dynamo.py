"""``torch._dynamo`` left out of a process until something asks it for more than to keep away, and what it counts.

Knows Python's imports, and the two functions that torch itself calls where nothing is compiled.

Every optimizer of torch imports it at its first step, which takes longer than to import torch: 1.5 s, for a break in a
graph that nobody traces. A process that only imitates a few steps has better things to do.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from .late import when_imported

_NAME = "torch._dynamo"


def keep_away() -> None:
    """Let a stand-in answer for ``torch._dynamo`` from now on, in a process that has imported torch and not that."""
    if _NAME not in sys.modules:
        _set(_StandIn())
        sys.meta_path.insert(0, _Finder())


def has_come() -> bool:
    """Whether the real module has been imported."""
    return _NAME in sys.modules and not isinstance(sys.modules[_NAME], _StandIn)


def come() -> ModuleType:
    """Import the real module."""
    known = sys.modules.get(_NAME)
    if isinstance(known, _StandIn):
        del sys.modules[_NAME]
        sys.meta_path[:] = [each for each in sys.meta_path if not isinstance(each, _Finder)]
        for function in known.disabled:
            # Where torch remembers it: the next call asks the real module.
            function.__dict__.pop("__dynamo_disable", None)
        _set(importlib.import_module(_NAME))
    return importlib.import_module(_NAME)


def leave_alone(stack: ExitStack, package: str, *, but: Callable[..., Any]) -> None:
    """Let ``torch.compile`` neither compile the functions of a package nor trace into them, wherever they are called.

    Nor those of this room, which they call.

    Args:
        stack: ends the waiting, where nothing was compiled yet.
        package: its name.
        but: what stands in compiled code for a function of torch's, and calls that: it is traced into. As are other
            functions of its file.
    """
    file = but.__code__.co_filename
    when_imported("torch._dynamo.trace_rules", lambda rules: _skip(rules, package, file), stack)


def _skip(rules: ModuleType, package: str, but: str) -> None:
    add, traced = getattr(rules, "add", None), getattr(rules, "get_mod_inlinelist", None)
    if add is None or traced is None:
        return
    if package not in _skipped:
        _skipped.add(package)
        for each in (package, __package__):
            add(each)
    if but not in _traced:  # torch forgets what it has found at each new process group, so it has to find it again
        _traced.add(but)
        rules.__dict__["get_mod_inlinelist"] = functools.cache(lambda: {*traced(), but})


_skipped: set[str] = set()
_traced: set[str] = set()


def measurements() -> int:
    """How many measurements of kernels ``torch.compile`` has made in this process, to choose among their variants.

    Each takes buffers on the device. Choices are kept in a cache, and are not measured for again.
    """
    return sum(count for name, count in _counted("inductor").items() if name.startswith("benchmarking."))


def compilations() -> int:
    """How many graphs ``torch.compile`` has compiled in this process."""
    return _counted("stats").get("unique_graphs", 0)


def compiles_backward() -> bool:
    """Whether compiled autograd is on: a backward that begins now is compiled, with the hooks on its nodes."""
    module = sys.modules.get("torch._dynamo.compiled_autograd")
    return bool(getattr(module, "compiled_autograd_enabled", False))


def _counted(what: str) -> dict[str, int]:
    utils = sys.modules.get("torch._dynamo.utils")
    found: dict[str, int] = getattr(utils, "counters", {}).get(what, {})
    return found


def _set(module: ModuleType) -> None:
    sys.modules[_NAME] = sys.modules["torch"]._dynamo = module  # type: ignore[attr-defined] # looked up lazily there


class _StandIn(ModuleType):
    """What torch asks for where nothing is compiled; for everything else the real module comes."""

    __path__ = []  # noqa: RUF012 - a package: imports of its parts go to the finder

    def __init__(self) -> None:
        super().__init__(_NAME)
        self.disabled: list[Callable[..., Any]] = []

    def graph_break(self, *args: object, **kwargs: object) -> None:
        """Outside of a compilation this does nothing."""

    def disable(self, fn: Any = None, *args: Any, **kwargs: Any) -> Any:
        """A function that is not to be compiled: as it is, since nothing is."""
        if fn is None:
            return come().disable(fn, *args, **kwargs)
        self.disabled.append(fn)
        return fn

    def __getattr__(self, name: str) -> Any:
        # `inspect` asks every module that there is for its `__file__`, also while torch imports parts of itself.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(come(), name)


class _Finder(MetaPathFinder):
    """Finds parts of the package, once the package itself has come."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not fullname.startswith(f"{_NAME}."):
            return None
        package = come()
        known = sys.modules.get(fullname)
        if known is not None:
            # Of a module that came meanwhile Python takes the module's own spec, and would run it a second time.
            # Into its variables: a module of settings takes no attribute but these.
            vars(known)["__spec__"] = spec = ModuleSpec(fullname, _Known(known))
            return spec
        return PathFinder.find_spec(fullname, package.__path__)


class _Known(Loader):
    """Gives a module that was imported meanwhile."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__spec__"] = self._spec
