"""Replacing parts of torch for a while: attributes, and kernels of operators. Knows how each is put back; not which."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch._C import DispatchKey
from torch._subclasses import fake_impls
from torch._subclasses.fake_tensor import FakeTensor

_PARTS = DispatchKey.CompositeImplicitAutograd


def replace(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute of a class or a module until the stack closes."""
    if name in vars(owner):
        stack.callback(setattr, owner, name, vars(owner)[name])
    else:
        stack.callback(delattr, owner, name)
    setattr(owner, name, value)


def answer_fakes(stack: ExitStack, operator: Any, make: Callable[..., Any]) -> None:
    """Say what an operator gives for fake tensors, until the stack closes.

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
    table[operator] = make


def has_fakes(values: Iterable[Any]) -> bool:
    """Whether there is a fake tensor among values and lists of them."""
    for value in values:
        if isinstance(value, FakeTensor) or (isinstance(value, (list, tuple)) and has_fakes(value)):
            return True
    return False


class Kernels:
    """Kernels for fake tensors with CUDA's dispatch keys, until a stack closes.

    Host tensors never come to them, and real ones on a device, which other threads may have, get what is torch's own.
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

        def call(*args: Any, **kwargs: Any) -> Any:
            if has_fakes(args):
                return kernel(*args, **kwargs)
            if has_parts:
                return operator._op_dk(_PARTS, *args, **kwargs)
            with torch._C._AutoDispatchBelowAutograd():
                return operator(*args, **kwargs)

        self._impl(operator, call, "AutogradCUDA")
        # In inference mode no autograd key is there: the fake mode takes such an operator apart itself.
        operator.py_kernels[_PARTS] = call
        self._stack.callback(operator.py_kernels.pop, _PARTS)

    def autocast(self, operator: Any, kernel: Callable[..., Any]) -> None:
        """Replace what autocast does before an operator."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a kernel of torch's is replaced
            self._impl(operator, kernel, "AutocastCUDA")

    def exists(self, operator: Any) -> None:
        """Let autograd know that CUDA has a kernel of an operator; a build for the CPU takes it apart instead."""
        if not torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CUDA"):
            self._impl(operator, _unreachable, "CUDA")

    def _impl(self, operator: Any, kernel: Callable[..., Any], key: str) -> None:
        self._library.impl(operator, kernel, key)  # type: ignore[no-untyped-call] # torch's


def _unreachable(*args: object, **kwargs: object) -> None:
    raise AssertionError("a fake mode answers before a kernel is called")
