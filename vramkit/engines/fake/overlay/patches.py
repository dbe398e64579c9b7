"""Replacing parts of torch for a while, and for one run alone: attributes, and kernels of operators. Knows how each is
put back, and how other threads go on seeing torch's own; not which parts there are.

A run belongs to one thread, and to the threads of autograd while they work for it: what `runs_here` goes by is a
thread's own, and torch hands it to its threads with each backward. So there may be other threads of the user's.
"""

from __future__ import annotations

import functools
import inspect
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._C import DispatchKey
from torch._subclasses import fake_impls
from torch._subclasses.fake_tensor import FakeTensor

_PARTS = DispatchKey.CompositeImplicitAutograd
_KEY = "vramkit: this thread runs a program on fake tensors"
_is_noted, _noted, _note = torch._C._is_key_in_tls, torch._C._get_obj_in_tls, torch._C._stash_obj_in_tls


def runs_here() -> bool:
    """Whether this thread runs a program, or works for a backward of one."""
    return _is_noted(_KEY) and _noted(_KEY) is True


@contextmanager
def running() -> Iterator[None]:
    """Inside, this thread runs a program, and sees what is replaced."""
    before = runs_here()
    _note(_KEY, True)
    try:
        yield
    finally:
        _note(_KEY, before)


def by_thread(ours: Callable[..., Any], theirs: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is one where a program runs, and another one elsewhere."""

    def function(*args: Any, **kwargs: Any) -> Any:
        return (ours if runs_here() else theirs)(*args, **kwargs)

    return functools.update_wrapper(function, theirs)


# -- attributes --------------------------------------------------------------------------------------------------------

_MISSING = object()


def put(stack: ExitStack, owner: Any, name: str, value: Any, *, theirs: Any = _MISSING) -> None:
    """Let an attribute of a class or a module be another one for this run, until the stack closes.

    Args:
        stack: puts back what was there.
        owner: in a class, functions, static methods and properties can be replaced; in a module whatever there is.
        name: of the attribute.
        value: a function, or for a class what its body would have.
        theirs: what other threads see; without it, what is there now.
    """
    if isinstance(owner, types.ModuleType):
        _put_in_module(stack, owner, name, value)
        return
    seen = inspect.getattr_static(owner, name) if theirs is _MISSING else theirs
    chosen: Any
    if isinstance(value, property):
        assert value.fget is not None
        chosen = property(by_thread(value.fget, seen.__get__))
    elif isinstance(value, staticmethod):
        chosen = staticmethod(by_thread(value.__func__, getattr(owner, name)))
    else:
        chosen = by_thread(value, getattr(owner, name) if theirs is _MISSING else theirs)
    _set(stack, owner, name, chosen)


def put_data(stack: ExitStack, owner: type, name: str, descriptor: object) -> None:
    """Let a descriptor, which asks `runs_here` itself, be an attribute of a class until the stack closes."""
    _set(stack, owner, name, descriptor)


def _set(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    if name in vars(owner):
        stack.callback(setattr, owner, name, vars(owner)[name])
    else:
        stack.callback(delattr, owner, name)
    setattr(owner, name, value)


def _put_in_module(stack: ExitStack, module: types.ModuleType, name: str, value: Any) -> None:
    known = vars(type(module)).get(name)
    if isinstance(known, _Attribute):
        stack.callback(known.set_ours, module, known.ours)
        known.set_ours(module, value)
        return
    if not getattr(type(module), "_by_thread", False):
        plain = type(module)
        stack.callback(setattr, module, "__class__", plain)
        module.__class__ = type(plain.__name__, (plain,), {"_by_thread": True, "__module__": plain.__module__})
    attribute = _Attribute(name, value, getattr(module, name))
    stack.callback(attribute.leave, module, is_own=name in vars(module))
    setattr(type(module), name, attribute)
    attribute.set_ours(module, value)


class _Attribute:
    """An attribute of a module: whoever asks the module gets the very object that is there for him.

    Functions of the module itself find their globals without asking: they get what chooses when it is used.
    """

    def __init__(self, name: str, ours: Any, theirs: Any) -> None:
        self.name, self.ours, self.theirs = name, ours, theirs

    def __get__(self, module: Any, kind: Any = None) -> Any:
        return self.ours if runs_here() else self.theirs

    def __set__(self, module: Any, value: Any) -> None:
        if runs_here():
            self.set_ours(module, value)
        else:
            self.theirs = value
            self._set_global(module)

    def set_ours(self, module: types.ModuleType, value: Any) -> None:
        self.ours = value
        self._set_global(module)

    def leave(self, module: types.ModuleType, *, is_own: bool) -> None:
        delattr(type(module), self.name)
        if is_own:
            vars(module)[self.name] = self.theirs
        else:
            vars(module).pop(self.name, None)

    def _set_global(self, module: types.ModuleType) -> None:
        theirs = self.theirs
        if not isinstance(theirs, (bool, type)):  # a choice could not pass for one of those
            is_function = callable(theirs) and callable(self.ours)
            vars(module)[self.name] = by_thread(self.ours, theirs) if is_function else _Either(self.ours, theirs)


class _Either:
    """An object that is one where a program runs, and another one elsewhere, as far as it is asked for something."""

    def __init__(self, ours: Any, theirs: Any) -> None:
        self._ours, self._theirs = ours, theirs

    def _there(self) -> Any:
        return self._ours if runs_here() else self._theirs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._there(), name)

    def __contains__(self, item: object) -> bool:
        return item in self._there()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._there())

    def __len__(self) -> int:
        return len(self._there())

    def __getitem__(self, key: Any) -> Any:
        return self._there()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._there()[key] = value


# -- operators ---------------------------------------------------------------------------------------------------------


def answer_fakes(stack: ExitStack, operator: Any, make: Callable[..., Any]) -> None:
    """Say what an operator gives for fake tensors of this run, until the stack closes.

    Args:
        stack: puts back what was there.
        operator: an overload.
        make: called with the fake mode, the operator and its arguments.
    """
    table = fake_impls.op_implementations_dict
    before = table.get(operator)
    if before is None:
        stack.callback(table.pop, operator)
    else:
        stack.callback(table.__setitem__, operator, before)
    table[operator] = by_thread(make, _no_answer if before is None else before)


def _no_answer(*args: object, **kwargs: object) -> Any:
    return NotImplemented


def has_fakes(values: Iterable[Any]) -> bool:
    """Whether there is a fake tensor among values and lists of them."""
    for value in values:
        if isinstance(value, FakeTensor) or (isinstance(value, (list, tuple)) and has_fakes(value)):
            return True
    return False


class Kernels:
    """Kernels for this run's fake tensors with CUDA's dispatch keys, until a stack closes.

    Host tensors never come to them; real ones on a device, and whatever other threads have, get what is torch's own.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call] # torch's
        self._stack = stack
        stack.callback(self._library._destroy)

    def composite(self, operator: Any, kernel: Callable[..., Any]) -> None:
        """Replace what an operator does that is made of others, above autograd; or take one apart whose kernel calls
        others.

        Args:
            operator: an overload, such as ``torch.ops.aten.dropout.default``.
            kernel: called with its arguments.
        """
        has_parts = torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), _PARTS.name)

        def take_apart(*args: Any, **kwargs: Any) -> Any:
            if runs_here() and has_fakes(args):
                return kernel(*args, **kwargs)
            return operator._op_dk(_PARTS, *args, **kwargs) if has_parts else NotImplemented

        self._impl(operator, kernel, "AutogradCUDA")
        # In inference mode no autograd key is there: the fake mode takes such an operator apart itself.
        operator.py_kernels[_PARTS] = take_apart
        self._stack.callback(operator.py_kernels.pop, _PARTS)

    def autocast(self, operator: Any, kernel: Callable[..., Any]) -> None:
        """Replace what autocast does before an operator."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a kernel of torch's is replaced
            self._impl(operator, kernel, "AutocastCUDA")

    def exists(self, operator: Any) -> None:
        """Let autograd know that CUDA has a kernel of an operator; a build for the CPU takes it apart instead."""
        if not torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CUDA"):
            self._library.impl(operator, _unreachable, "CUDA")  # type: ignore[no-untyped-call] # torch's

    def _impl(self, operator: Any, kernel: Callable[..., Any], key: str) -> None:
        own = _kernel_of(operator, key)

        def call(keys: Any, *args: Any, **kwargs: Any) -> Any:
            if runs_here() and (has_fakes(args) or has_fakes(kwargs.values())):
                return kernel(*args, **kwargs)
            return own(keys, *args, **kwargs)

        self._library.impl(operator, call, key, with_keyset=True)  # type: ignore[no-untyped-call] # torch's


def _kernel_of(operator: Any, key: str) -> Callable[..., Any]:
    """torch's own kernel of an operator, which gets the keys first."""
    if hasattr(torch.library, "get_kernel"):
        return torch.library.get_kernel(operator, key).call_boxed

    # torch 2.8 hands none out. Whoever has tensors with CUDA's keys in a process without a device has fakes of his own:
    # his operators are made of others, and are not cast.
    def take_apart(keys: Any, *args: Any, **kwargs: Any) -> Any:
        with torch._C._DisableAutocast():
            if torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), _PARTS.name):
                return operator._op_dk(_PARTS, *args, **kwargs)
            with torch._C._AutoDispatchBelowAutograd():
                return operator(*args, **kwargs)

    return take_apart


def _unreachable(*args: object, **kwargs: object) -> None:
    raise AssertionError("a fake mode answers before a kernel is called")
