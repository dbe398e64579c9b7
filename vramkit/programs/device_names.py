"""``device = "cuda" if torch.cuda.is_available() else "cpu"`` in a process without CUDA: a text that a step's functions
use, and that would be another one on a machine with a GPU. Knows functions' variables; no engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType, FunctionType

_NAMES = ("device", "DEVICE", "dev")

NOTE = 'A variable `device` that is "cpu" was taken as "cuda": torch finds no CUDA device in this process.'


def is_used(function: object) -> bool:
    """Whether a function, or one of its own module that it calls, uses such a variable."""
    return any(True for _ in _places(function, set()))


def become_cuda(function: object) -> None:
    """Let such variables be "cuda" for a function that was sent by value, and so has them for itself."""
    for place in list(_places(function, set())):
        place.say()


class _Global:
    def __init__(self, function: FunctionType, name: str) -> None:
        self._globals, self._name = function.__globals__, name

    def say(self) -> None:
        self._globals[self._name] = "cuda"


class _Cell:
    def __init__(self, function: FunctionType, index: int) -> None:
        self._cell = (function.__closure__ or ())[index]

    def say(self) -> None:
        self._cell.cell_contents = "cuda"


def _places(function: object, seen: set[int]) -> Iterator[_Global | _Cell]:
    function = getattr(function, "__func__", function)
    if not isinstance(function, FunctionType) or id(function) in seen:
        return
    seen.add(id(function))
    for index, name in enumerate(function.__code__.co_freevars):
        try:
            value = (function.__closure__ or ())[index].cell_contents
        except ValueError:  # not assigned yet
            continue
        if name in _NAMES and value == "cpu" and isinstance(value, str):
            yield _Cell(function, index)
        yield from _places(value, seen)
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        if name in _NAMES and isinstance(value, str) and value == "cpu":
            yield _Global(function, name)
        elif isinstance(value, FunctionType) and value.__globals__ is function.__globals__:
            yield from _places(value, seen)


def _names(code: CodeType) -> Iterator[str]:
    """Names of globals in a function and those inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
