"""The handles of hooks, and what stands for something of torch's: who owns them, and how they are given up.

Knows interrupts, and that several threads may give the same up; knows no hook.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any


def own(stack: ExitStack, undo: Callable[..., object], *args: Any) -> None:
    """Let a stack undo something, twice: an interrupt may end the one, and the other does it then."""
    stack.callback(undo, *args)
    stack.callback(undo, *args)


def replace(stack: ExitStack, owner: Any, name: str, replacement: Callable[..., Any]) -> None:
    """Put a function in the place of another until the stack closes."""
    stack.callback(setattr, owner, name, vars(owner)[name])
    setattr(owner, name, replacement)


def drop(handles: list[Any]) -> None:
    """Detach hooks, and forget their handles. Where another thread does so too, each handle is one's, never both's."""
    with suppress(IndexError):
        while handles:
            handles.pop().remove()
