"""Begins to compute values when torch asks CUDA for its devices. Knows when, and up to which size; the library does it.

Nothing here imports torch before torch itself is there.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SMALL = 64 << 10
"""Bytes of the largest tensor of floating-point numbers that takes part with ``values="small"``."""
SMALL_INTEGERS = 16 << 20
"""The same of integers and flags: ids, masks, routes, which sizes depend on more often. Two million tokens."""
SMALL_BYTES = 1 << 20
"""The same of integers of one byte, such as pixels and quantized weights, on which none depends."""
_NO_LIMIT = 1 << 62

_FirstUse = ctypes.CFUNCTYPE(ctypes.c_int)
_Told = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int)


class Read(NamedTuple):
    """A size, or another answer, that a program took from values that were not computed, or from choices by such."""

    operator: str
    """In torch's words, ``"aten::nonzero"``."""
    mark: str
    """What the allocator's metadata of the thread was: a profile finds the module by it. Empty: there is none."""


class ComputedValues:
    """What is computed in this process.

    Args:
        runtime: the virtual GPU's own library.
        library: what sees the operators.
        everything: no tensor is too large.
        copy_limit: bytes; copies from the host up to this size are made, and those of ids and masks that are computed.
    """

    def __init__(self, runtime: ctypes.CDLL, library: Path, *, everything: bool, copy_limit: int) -> None:
        self.reads: Counter[Read] = Counter()
        """How often sizes were taken from values that were not computed."""
        self.spread: Counter[Read] = Counter()
        """How often sizes came of choices by such values, which were made evenly, in turn."""
        self._path = library
        self._library: ctypes.CDLL | None = None
        self._limits = (_NO_LIMIT,) * 4 if everything else (SMALL, SMALL_INTEGERS, SMALL_BYTES, copy_limit)
        # Both are called from C as long as the process lives.
        self._first_use = _FirstUse(self._begin)
        self._told = _Told(self._note)
        runtime.vgpu_on_first_use.argtypes = [_FirstUse]
        runtime.vgpu_on_first_use.restype = None
        runtime.vgpu_on_first_use(self._first_use)

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor of floating-point numbers that is computed."""
        return self._limits[0]

    def leave_out_floating_point(self) -> None:
        """Compute integers and flags alone, where a model's own values are not there."""
        self._limits = (0, *self._limits[1:])

    def prepare(self) -> ctypes.CDLL:
        """Do what takes a while (70 ms), once torch is imported; forks of this process then begin at once."""
        if self._library is None:
            from ...torch_internals.dispatch import pass_higher_order
            from . import twins

            pass_higher_order("Fake")
            twins.register()
            self._library = ctypes.CDLL(str(self._path))
            self._library.values_begin.argtypes = [ctypes.c_int64] * 4 + [_Told]
            self._library.values_begin.restype = None
            self._library.values_prepare()
        return self._library

    def _begin(self) -> int:
        torch = sys.modules.get("torch")
        if torch is None or not hasattr(torch, "library") or not hasattr(torch, "optim"):
            return 0  # it is still being imported
        library = self.prepare()
        library.values_begin(*self._limits, self._told)
        _begin_threads_with(library.values_thread)
        return 1

    def _note(self, operator: bytes, spread: int) -> None:
        from ...torch_internals.allocator import get_metadata  # imports torch, which is there by now

        counted = self.spread if spread else self.reads
        counted[Read(operator.decode(), get_metadata() if get_metadata is not None else "")] += 1


def _begin_threads_with(call: Callable[[], object]) -> None:
    """Let every thread that Python starts from now on make a call first."""
    inner = vars(threading.Thread)["_bootstrap_inner"]

    def bootstrap(thread: threading.Thread) -> None:
        call()
        inner(thread)

    threading.Thread._bootstrap_inner = bootstrap  # type: ignore[attr-defined] # noqa: SLF001 - run() is for subclasses
