"""What can be reached from a program's variables, and by which name. Runs none of the program's code: no property, no
``__getattr__``, no ``__iter__`` of its own. Knows Python's objects and ``nn.Module``; not what any of it is for.
"""

from __future__ import annotations

import functools
import itertools
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch

from ..torch_internals.modules import children_of
from .frames import locals_of
from .tensors import tensors_in

_T = TypeVar("_T")

_ATOMS = (int, float, complex, str, bytes, bytearray, type(None), type, types.ModuleType, types.BuiltinFunctionType)
_HOLD_NOTHING = (*_ATOMS, torch.Tensor)
_SEQUENCES = (list, tuple, set, frozenset, deque)
_LARGE, _SAMPLE = 1000, 8
_MAX_OBJECTS = 30_000
_MOST_OF_A_BATCH = 100
_OF_A_MODULE = frozenset(vars(torch.nn.Module()))


class Found(NamedTuple):
    """An object that was reached."""

    name: str
    """How: ``"ema.module"``, ``"logits[3]"``."""
    value: Any
    mark: Any
    """What it was marked with, or else what holds it."""


def reached(
    roots: Iterable[tuple[str, Any]],
    look: Callable[[Found], tuple[bool, _T | None]],
    limit: int = _MAX_OBJECTS,
    seen: set[int] | None = None,
) -> Iterator[Found]:
    """Every tensor, wherever it is, and once every object that may hold some; the shortest names first.

    Args:
        roots: names and values.
        look: says of each object that may hold others whether to go into it, and what to mark what is inside with; for
            None it gets the object's own mark.
        limit: how many objects to go into, at most.
        seen: ids of objects that were reached from elsewhere, and are not again; gets those that are. They have to be
            there as long as it is.
    """
    seen = set() if seen is None else seen
    pending = deque(Found(name, value, None) for name, value in roots)
    while pending and limit:
        each = pending.popleft()
        value = each.value
        kind = type(value)  # to ask the value itself, as isinstance() does, may run anything
        if issubclass(kind, torch.Tensor):
            yield each
        if issubclass(kind, _HOLD_NOTHING) or id(value) in seen or (kind is types.FunctionType and _is_plain(value)):
            continue
        seen.add(id(value))
        limit -= 1
        enters, mark = look(each)
        yield each
        if enters:
            mark = each.mark if mark is None else mark
            pending.extend(Found(name, item, mark) for name, item in items_of(each.name, value))


def tensors_given(arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> list[torch.Tensor]:
    """The tensors that a model's call is given: in tuples, lists and dicts, and in an object that is a batch, such as a
    graph, or images beside their masks. One that holds modules or much else, as a trainer does, is none.
    """
    found = list(tensors_in(arguments))
    objects = [("", each) for each in _objects_in(arguments)]
    if objects:
        inside = [each.value for each in reached(objects, lambda _: (True, None), _MOST_OF_A_BATCH)]
        tensors = [each for each in inside if issubclass(type(each), torch.Tensor)]
        is_batch = not any(issubclass(type(each), torch.nn.Module) for each in inside)
        if is_batch and len(inside) - len(tensors) < _MOST_OF_A_BATCH:
            found += tensors
    return found


def _objects_in(value: Any, depth: int = 8) -> Iterator[Any]:
    """What nested tuples, lists and dicts hold beside tensors, numbers and the like."""
    kind = type(value)
    if depth and issubclass(kind, (tuple, list, dict)):
        for item in list(dict.values(value)) if issubclass(kind, dict) else value:
            yield from _objects_in(item, depth - 1)
    elif not issubclass(kind, (*_HOLD_NOTHING, torch.dtype, torch.device)):
        yield value


def items_of(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds itself: a container's items, an instance's attributes, a function's closure."""
    kind = type(value)
    if issubclass(kind, dict):
        if dict.__len__(value) <= _LARGE or not _is_data(dict.values(value)):
            yield from ((f"{name}[{_shown(key)}]", item) for key, item in list(dict.items(value)))
    elif issubclass(kind, _SEQUENCES):
        base = next(each for each in _SEQUENCES if issubclass(kind, each))
        if base.__len__(value) <= _LARGE or not _is_data(base.__iter__(value)):
            yield from ((f"{name}[{index}]", item) for index, item in enumerate(list(base.__iter__(value))))
    elif issubclass(kind, types.FunctionType):
        yield from _of_a_function(value)
    elif issubclass(kind, types.MethodType):
        yield name, value.__self__
        yield name, value.__func__
    elif issubclass(kind, functools.partial):
        yield from ((name, item) for item in (value.func, value.args, value.keywords))
    elif issubclass(kind, types.GeneratorType) and value.gi_frame is not None and not value.gi_running:
        yield from locals_of(value.gi_frame).items()
    if issubclass(kind, torch.nn.Module):
        yield from ((f"{name}.{key}", child) for key, child in list(children_of(value).items()) if child is not None)
    yield from attributes_of(name, value)


def attributes_of(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of an instance; of a module those that are neither its parameters, its buffers nor its modules."""
    kind = type(value)
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        own = None
    if type(own) is dict:
        of_module = issubclass(kind, torch.nn.Module)
        for key, item in list(own.items()):
            # What torch keeps in every module is not the program's, but for hooks, which hold what they close over.
            if type(key) is str and not (of_module and key in _OF_A_MODULE and not ("hook" in key and item)):
                yield f"{name}.{key}", item
    if getattr(kind, "__slots__", ()):
        yield from _slots_of(name, value)


def _slots_of(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for key in (slots,) if isinstance(slots, str) else tuple(slots):
            member = vars(base).get(key)
            if type(member) is types.MemberDescriptorType:
                try:
                    yield f"{name}.{key}", member.__get__(value)
                except AttributeError:  # not set
                    continue


def _of_a_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield key, cell.cell_contents
        except ValueError:  # not set yet
            continue
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    yield from ((function.__name__, item) for item in defaults)


def _shown(key: Any) -> str:
    return repr(key) if type(key) in (str, int) else "..."


def _is_plain(function: types.FunctionType) -> bool:
    return function.__closure__ is None and not (function.__defaults__ or function.__kwdefaults__ or function.__dict__)


def _is_data(values: Iterable[Any]) -> bool:
    """Whether a large container is one of numbers or texts, such as a vocabulary, by the first ones."""
    return all(issubclass(type(each), _ATOMS) for each in itertools.islice(values, _SAMPLE))
