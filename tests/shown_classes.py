"""Run as a script: which classes of vramkit show in a public signature, field or property, and are not public.

In a process of its own, in which classes still say in which file they are written: there their annotations are read.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
from collections import ChainMap
from collections.abc import Iterator
from functools import cache, cached_property
from types import FunctionType, ModuleType
from typing import Any, get_args

import vramkit

vramkit._let_them_say_where_they_are = lambda: None


@cache
def names_in(module: ModuleType) -> ChainMap[str, Any]:
    """What annotations in a file can name: its globals, and what it imports for type checkers alone."""
    for_checkers: dict[str, Any] = {}
    package = module.__name__ if hasattr(module, "__path__") else module.__name__.rpartition(".")[0]
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ImportFrom):
            origin = imported(
                importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                if node.level
                else node.module
            )
            if origin is None:
                for_checkers |= {alias.asname or alias.name: object for alias in node.names}
                continue
            for alias in node.names:
                if hasattr(origin, alias.name):
                    for_checkers[alias.asname or alias.name] = getattr(origin, alias.name)
    return ChainMap(vars(module), for_checkers)


def imported(name: str) -> ModuleType | None:
    """A module; None: it is of a package that only an extra brings, and is not there."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        if name.startswith("vramkit"):
            raise
        return None


def resolved(annotation: object, module: str) -> object:
    if isinstance(annotation, str):
        return eval(annotation, {}, names_in(importlib.import_module(module)))
    return annotation


def annotations_of(value: Any) -> Iterator[tuple[str, object]]:
    """Where a type is shown, and the type: of a function, or of what a class shows."""
    if isinstance(value, FunctionType):
        for name, each in value.__annotations__.items():
            yield f"{value.__qualname__}({name})", resolved(each, value.__module__)
        return
    for kind in value.__mro__:
        if not kind.__module__.startswith("vramkit"):
            continue
        yield f"{value.__name__} is one", kind
        for name, each in vars(kind).get("__annotations__", {}).items():
            if not name.startswith("_"):
                yield f"{value.__name__}.{name}", resolved(each, kind.__module__)
        for name, each in vars(kind).items():
            if name.startswith("_") and name not in ("__init__", "__call__", "__enter__"):
                continue
            if isinstance(each, (classmethod, staticmethod)):
                each = each.__func__
            elif isinstance(each, property):
                each = each.fget
            elif isinstance(each, cached_property):
                each = each.func
            # What a dataclass made for its fields shows nothing beside them.
            if isinstance(each, FunctionType) and each.__code__.co_filename != "<string>":
                yield from annotations_of(each)


def classes_in(annotation: object) -> Iterator[type]:
    """The classes of vramkit that a type is made of."""
    if isinstance(annotation, type) and annotation.__module__.startswith("vramkit"):
        yield annotation
    for each in get_args(annotation):
        yield from classes_in(each)


def main() -> None:
    public = [getattr(vramkit, name) for name in vramkit._HOMES]
    for module in (getattr(vramkit, name) for name in vramkit._MODULES):
        names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
        values = [getattr(module, name) for name in names]
        public += [value for value in values if getattr(value, "__module__", "").startswith("vramkit")]
    found = [
        [where, f"{kind.__module__}.{kind.__qualname__}"]
        for value in public
        if isinstance(value, (type, FunctionType))
        for where, annotation in annotations_of(value)
        for kind in classes_in(annotation)
        if kind not in public
    ]
    looked_at = sum(1 for value in public if isinstance(value, (type, FunctionType)) for _ in annotations_of(value))
    print(json.dumps({"looked at": looked_at, "not public": found}))


if __name__ == "__main__":
    main()
