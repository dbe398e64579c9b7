"""Notes on every node of the autograd graph which line of the program made it: a backward has no line of its own.

torch has a place for such a note, which anomaly detection fills with a text of the whole stack, for 120 µs a node. Here
that is on, without its search for NaN and except in backwards, so that none of its messages is seen; and what makes the
text is replaced by what finds the program's line, for some 2 µs. The allocator's history (torch 2.11 or newer) and the
recording on the CPU read the note of the node that runs. Knows nodes' notes; no allocation.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import CodeType, FrameType
from typing import Any

import torch

from ..tape.stacks import Whose, frame_of
from ..torch_internals.autograd import FORMAT_STACK, keeps_own_notes
from .handles import own, replace


class NodeNotes:
    """The notes of one recording; anomaly detection stays what the program sets it to, as far as it can see."""

    def __init__(self) -> None:
        self._set: Any = torch.set_anomaly_enabled
        self._is_on: Any = torch.is_anomaly_enabled
        self._checks_nan: Any = torch.is_anomaly_check_nan_enabled
        self._wish = (False, True)  # the program's own setting
        self._backwards: dict[object, None] = {}  # that are running
        self._is_open = False
        # By a line's code, which stays as long as its identity is used, and the place in it.
        self._texts: dict[tuple[int, int], tuple[CodeType, list[str]]] = {}
        self._whose: dict[str, Whose] = {}  # by files

    def install(self, stack: ExitStack) -> None:
        """Begin to note.

        Args:
            stack: ends it.
        """
        self._wish = self._is_on(), self._checks_nan()
        original = vars(FORMAT_STACK.owner)[FORMAT_STACK.name]

        def format_stack() -> list[str]:
            if self._wish[0] or keeps_own_notes():
                return original()  # type: ignore[no-any-return]  # torch's
            # This frame in a variable of its own would be a cycle, and keep the program's tensors until a collection.
            return self._text(sys._getframe().f_back)  # noqa: SLF001 - public, whatever its name

        def set_enabled(enabled: bool, check_nan: bool = True) -> None:
            self._set(enabled, check_nan)  # which says what can't be
            self._wish = enabled, check_nan
            self._apply()

        own(stack, self._set_back)
        replace(stack, torch, "set_anomaly_enabled", set_enabled)
        replace(stack, torch, "is_anomaly_enabled", lambda: self._wish[0])
        replace(stack, torch, "is_anomaly_check_nan_enabled", lambda: self._wish[1])
        replace(stack, FORMAT_STACK.owner, FORMAT_STACK.name, format_stack)
        self._is_open = True
        self._apply()

    @contextmanager
    def in_backward(self) -> Iterator[None]:
        """While a backward runs, torch would say more of its failures."""
        this = object()
        try:
            self._backwards[this] = None
            self._apply()
            yield
        finally:
            self._backwards.pop(this, None)
            self._apply()

    def _apply(self) -> None:
        # Without a lock, which an interrupt could leave locked.
        if self._is_open:
            self._set(*((True, False) if not self._wish[0] and not self._backwards else self._wish))
            if not self._is_open:  # another thread has ended the recording meanwhile
                self._set(*self._wish)

    def _set_back(self) -> None:
        self._is_open = False
        self._set(*self._wish)

    def _text(self, frame: FrameType | None) -> list[str]:
        """The program's line among a frame and those that called it, as anomaly detection writes one."""
        library = None
        while frame is not None:
            file = frame.f_code.co_filename
            whose = self._whose.get(file)
            if whose is None:
                whose = self._whose[file] = frame_of(file, frame.f_lineno, "").whose
            if whose is Whose.PROGRAM:
                return self._text_of(frame)
            if whose is Whose.LIBRARY and library is None:
                library = frame
            frame = frame.f_back
        return [] if library is None else self._text_of(library)

    def _text_of(self, frame: FrameType) -> list[str]:
        code = frame.f_code
        key = id(code), frame.f_lasti
        found = self._texts.get(key)
        if found is None:
            text = f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}\n'
            found = self._texts[key] = code, [text]
        return found[1]
