"""Which modules of the user's go by value, so that a step meets the very objects that are sent beside it.

A function or a class of a module that can be imported goes as a name. Where it arrives it finds what has that name
there: a second model, that the module's code built, or in the same process the user's own. So a step that leads to none
of the models and optimizers that were passed goes with its modules by value, and one that still does not is refused.
Knows modules and names; runs nothing.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import cloudpickle  # type: ignore[import-untyped] # which has none
import torch

from ..errors import UsageError
from .program import Program, functions_of
from .sending import Sender, trained_by

_HELD = (torch.nn.Module, torch.optim.Optimizer)
_NEVER = {"__main__", "builtins", "torch", "torchvision", "numpy", "cloudpickle", "vramkit", *sys.stdlib_module_names}
"""First parts of modules that are never sent: the same everywhere, or by value anyway."""


@contextmanager
def modules_by_value(program: Program, *, apart: bool) -> Iterator[None]:
    """Send the modules by value, while this holds, whose functions have to meet a program's objects.

    Args:
        program: to be sent.
        apart: it will be opened in this very process, where functions that go as names would find the user's objects.

    Raises:
        UsageError: its step leads to nothing that was passed.
    """
    passed = _passed(program)
    with ExitStack() as stack:
        for function in functions_of(program):
            for each in _functions_in(function):
                if (apart or _uses_globals(each)) and _is_users(each.__module__, passed):
                    _register(stack, each.__module__)
        if program.step is not None and program.make_models is None:
            _follow(program, passed, stack)
        yield


def _passed(program: Program) -> set[int]:
    """Ids of models, optimizers, and what they are made of."""
    models = [module for model in program.models.values() for module in model.modules()]
    tensors = [tensor for model in program.models.values() for tensor in (*model.parameters(), *model.buffers())]
    return {id(each) for each in (*models, *tensors, *program.optimizers, *trained_by(program))}


def _follow(program: Program, passed: set[int], stack: ExitStack) -> None:
    """Register modules until the step leads to something that was passed. Raises: UsageError: it never does."""
    while True:
        look = _Look(program, passed)
        try:
            look.dump(program.step)
        except _Found:
            return
        except Exception:
            return  # what can't be sent is told when it is sent
        more = [name for name in look.modules if _is_users(name, passed) and _register(stack, name)]
        if not more:
            raise _leads_nowhere(look.others)


class _Found(Exception):  # noqa: N818 - good news
    pass


class _Look(Sender):
    """Looks for what was passed in everything that would be sent of an object.

    Args:
        program: it belongs to.
        passed: ids of what was passed.
    """

    def __init__(self, program: Program, passed: set[int]) -> None:
        super().__init__(program)
        self._passed = passed
        self.modules: dict[str, None] = {}
        """Names of those whose functions and classes, or which themselves, went as names."""
        self.others: dict[str, None] = {}
        """Classes of models and optimizers that were not passed."""

    def persistent_id(self, value: Any) -> object:
        if id(value) in self._passed:
            raise _Found
        if isinstance(value, (types.FunctionType, type)):
            self.modules[value.__module__ or ""] = None
        elif isinstance(value, types.ModuleType):
            self.modules[value.__name__] = None
        elif isinstance(value, _HELD):
            self.others[type(value).__name__] = None
        elif isinstance(value, torch.storage.TypedStorage):
            return "a storage"  # its bytes are of no interest
        return None


def _leads_nowhere(others: dict[str, None]) -> UsageError:
    found = "its step uses none of the models and optimizers that were passed"
    if others:
        found += f", but {', '.join(others)}"
    return UsageError(
        "vramkit.estimate was to run a training step",
        found,
        "The step is sent with what it refers to, and an object that it imports, or finds by a name, when it runs is "
        "another one there",
        "Pass the very model and optimizer that the step uses, and let it refer to them by variables of the script, of "
        "its module or of the function around it",
    )


def _functions_in(function: object) -> Iterator[types.FunctionType]:
    """The functions that calling something comes to: of a partial, a method, a callable object, and what they wrap."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, types.MethodType):
            function = function.__func__
        else:
            break
    if not isinstance(function, types.FunctionType):
        function = getattr(type(function), "__call__", None)  # noqa: B004 - it is looked into, not called
    if isinstance(function, types.FunctionType):
        yield function
        inner = getattr(function, "__wrapped__", None)
        if inner is not None:
            yield from _functions_in(inner)


def _uses_globals(function: types.FunctionType) -> bool:
    return any(isinstance(value, _HELD) for value in function.__globals__.values())


def _is_users(name: str | None, passed: set[int]) -> bool:
    """Whether a module is the user's, or holds something that was passed, and so may be sent by value."""
    module = sys.modules.get(name or "")
    if module is None or module.__name__.partition(".")[0] in _NEVER:
        return False
    if "-packages" not in (getattr(module, "__file__", None) or ""):  # site-packages, dist-packages
        return True
    return any(id(value) in passed for value in vars(module).values())


def _register(stack: ExitStack, name: str) -> bool:
    """Send a module by value until the stack closes; False: it is sent so already."""
    module = sys.modules[name]
    if module.__name__ in cloudpickle.list_registry_pickle_by_value():
        return False
    cloudpickle.register_pickle_by_value(module)
    stack.callback(cloudpickle.unregister_pickle_by_value, module)
    return True
