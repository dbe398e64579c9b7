"""An operator's arguments, by the names that its schema gives them. Knows schemas; of kernels, nothing.

A function says which arguments it wants by what it calls its parameters. That each of them is there is checked when the
function is entered in a table, not when a program comes to the operator: another torch may call an argument otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from inspect import Parameter, signature
from typing import Any

import torch

from ....errors import DeviceError
from ....torch_internals.operators import has_kernel, has_kernel_of_key, schema_of

Binder = Callable[[tuple[Any, ...], dict[str, Any]], list[Any]]
"""Finds what a function wants in an operator's arguments, by position and by name; in the order of its parameters."""
_BY_NAME_ONLY = sys.maxsize


def binders(function: Callable[..., None], operator: Any, *, skip: int = 0) -> Iterator[tuple[Any, Binder]]:
    """Each overload of an operator that has a kernel, and what binds its arguments to a function's parameters.

    A parameter with a default may be missing in some overloads. One without may be missing only in overloads that torch
    takes apart into other operators: they come to no kernel as they are, and are left out.

    Args:
        function: whose parameters are called as in the schema.
        operator: without its overload, such as ``torch.ops.aten.sum``.
        skip: the parameters at the front that are no arguments of the operator.

    Raises:
        DeviceError: the operator of this torch has no argument of such a name.
    """
    wanted = list(signature(function).parameters.values())[skip:]
    overloads = [getattr(operator, name) for name in operator.overloads()]
    known = {overload: _arguments(overload) for overload in overloads if _is_dispatched(overload)}
    for each in wanted:
        if not any(each.name in arguments for arguments in known.values()):
            raise _misnamed(function, each.name, operator, known.values())
    for overload, arguments in known.items():
        missing = [each for each in wanted if each.name not in arguments]
        if missing and _is_composite(overload):
            continue
        for each in missing:
            if each.default is Parameter.empty:
                raise _misnamed(function, each.name, overload, [arguments])
        found = [(each.name, *arguments.get(each.name, (_BY_NAME_ONLY, each.default))) for each in wanted]
        yield overload, _binder(found)


def _binder(wanted: list[tuple[str, int, Any]]) -> Binder:
    def bind(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        count = len(args)
        return [args[position] if position < count else kwargs.get(name, default) for name, position, default in wanted]

    return bind


def _arguments(overload: Any) -> dict[str, tuple[int, Any]]:
    """Position and default of each argument, by its name."""
    return {
        each.name: (_BY_NAME_ONLY if each.kwarg_only else position, each.default_value)
        for position, each in enumerate(schema_of(overload).arguments)
    }


def _is_dispatched(overload: Any) -> bool:
    """Whether it is torch's, and not TorchScript's alone: of lists of numbers, strings."""
    return has_kernel(overload.name())


def _is_composite(overload: Any) -> bool:
    """Whether torch takes it apart, where its backend has no kernel for it."""
    return has_kernel_of_key(overload.name(), "CompositeImplicitAutograd")


def _misnamed(function: Callable[..., None], name: str, operator: Any, known: Iterable[dict[str, Any]]) -> DeviceError:
    names = sorted({each for arguments in known for each in arguments})
    return DeviceError(
        f"The fake engine's rule {function.__module__}.{function.__name__} wants the argument {name!r} of {operator}",
        f"torch {torch.__version__} calls its arguments {', '.join(names) or 'nothing'}",
        "The rule was written for another version of torch",
        'Take engine="virtual", or a torch version that this version of vramkit was tested with: 2.8 to 2.14',
    )
