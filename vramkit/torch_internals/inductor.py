"""torch's private names of compiled graphs: the code that was generated for them, the modules of their nodes, and where
kernels are measured.

Knows where torch keeps the code's modules, and the graph that Dynamo made, which stays as long as what was compiled.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import FrameType, FunctionType, ModuleType
from typing import Any

from .late import when_imported
from .names import Place

_CACHE = "torch._inductor.codecache"
_LOADS = "load_by_key_path"
_COMPILATIONS = "torch._dynamo.callback", "CompilationCallbackHandler", "install_callbacks"
_MEASUREMENTS = "torch._inductor.runtime.triton_heuristics", "CachingAutotuner", "bench"
_RECORDS = "CUDAGRAPH_RECORDING"
_COMPILED = "__compiled_fn"  # how the names begin by which Dynamo's code calls what was compiled
_DEPTH = 80  # frames between what was compiled and its generated code; with CUDA graphs there are some 30
_ROOT = re.compile(r"^[LG]\['\w+'\](\.__self__)?")  # itself, or a method of it
_INSIDE = re.compile(r"(?:\._modules)?\[['\"]?(\w+)['\"]?\]")
_AGAIN = re.compile(r"@\d+$")  # the module is called more than once


def when_here(stack: ExitStack, tell: Callable[[Place], object]) -> None:
    """Say where what loads generated code is, now or as soon as the first compilation imports it.

    Args:
        stack: ends the waiting.
        tell: is told.
    """

    def found(_module: ModuleType) -> None:
        cache = _cache()
        if hasattr(cache, _LOADS):
            tell(Place(cache, _LOADS))

    when_imported(_CACHE, found, stack)


def when_measuring(stack: ExitStack, compiles: Callable[[Place], object], measures: Callable[[Place], object]) -> None:
    """Say where a compilation runs, and where a variant of a kernel is measured: now, or when torch imports it.

    Args:
        stack: ends the waiting.
        compiles: is told of the method whose context manager is around each compilation; see `is_compilation`.
        measures: is told of the method that measures.
    """
    for (module, owner, name), tell in ((_COMPILATIONS, compiles), (_MEASUREMENTS, measures)):

        def found(there: ModuleType, owner: str = owner, name: str = name, tell: Any = tell) -> None:
            kind = getattr(there, owner, None)
            if name in getattr(kind, "__dict__", ()):
                tell(Place(kind, name))

        when_imported(module, found, stack)


def is_compilation(trigger: object) -> bool:
    """Whether what torch says of by a trigger compiles; else it records a CUDA graph, and what it runs is the program.

    Args:
        trigger: a ``torch._dynamo.callback.CallbackTrigger``.
    """
    return getattr(trigger, "name", _RECORDS) != _RECORDS


def loaded() -> list[ModuleType]:
    """The modules of generated code that there are."""
    return list(getattr(_cache(), "modules", ()))


def functions_of(module: ModuleType) -> list[FunctionType]:
    """The functions of a module of generated code, and those of its classes."""
    classes = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
    found = [each for owner in (module, *classes) for each in vars(owner).values()]
    return [each for each in found if isinstance(each, FunctionType) and each.__globals__ is vars(module)]


def compiled_above(frame: FrameType | None) -> Any:
    """What was compiled, and called the generated code that a frame is in; None: it can't be told."""
    for _ in range(_DEPTH):
        if frame is None:
            return None
        for name in frame.f_code.co_names:
            if name.startswith(_COMPILED):
                return frame.f_globals.get(name)
        frame = frame.f_back
    return None


def modules_of_nodes(compiled: Any) -> Mapping[str, tuple[str, str]]:
    """Of each node of the graph that was compiled: its module's name below the outermost, and the name of its class.

    Both are empty where it is the outermost, or none: Dynamo says nothing of it then.
    """
    method = getattr(compiled, "named_parameters", None)
    graph = getattr(getattr(method, "__self__", None), "graph", None)
    found = {}
    for node in getattr(graph, "nodes", ()):
        stack = node.meta.get("nn_module_stack")
        if node.op.startswith("call_"):
            source, kind = list(stack.values())[-1] if stack else ("", "")
            found[node.name] = _below_root(source), getattr(kind, "__name__", str(kind).rpartition(".")[2])
    return found


def _below_root(source: str) -> str:
    """Of a module's source, ``L['self']._modules['blocks']._modules['0']``, the name that it has in the outermost."""
    return _AGAIN.sub("", _INSIDE.sub(r".\1", _ROOT.sub("", source))).strip(".")


def _cache() -> Any:
    return getattr(sys.modules.get(_CACHE), "PyCodeCache", None)
