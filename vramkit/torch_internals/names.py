"""A private name of torch, looked up once: what is found there, or what is said where a torch lacks it.

Knows how a name is found, and which verb needs it; knows none of the names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from typing import Any, Literal, NoReturn

import torch

from ..errors import DeviceError

Need = Literal[
    "programs",  # whatever takes a model and a batch: checks them, and packs them for an engine
    "profile",  # marks, on any device
    "profile on CUDA",
    "profile on the CPU",
    "batch size on CUDA",  # what `auto_batch_size` needs beside a profile
    "virtual engine",  # what its helper process needs beside a profile on CUDA
    "fake engine",
    "closed forms",
]
"""What a private name is for."""

CHECKED = "2.13 and 2.14"
"""The versions of torch that have every name, as CI holds. A name that is known to be older or younger says so."""


@dataclass(frozen=True)
class Name:
    """A private name of torch."""

    path: str
    """Where it is: "torch._C._cuda_memorySnapshot"; of an attribute, the class that has it."""
    needs: frozenset[Need]
    versions: str
    """Of torch, that are known to have it."""
    is_there: bool
    has_fallback: bool

    def __str__(self) -> str:
        return f"{self.path} (torch {self.versions} have it)"


TABLE: dict[str, Name] = {}
"""Every name that was looked up, by its path."""

_NOTHING = object()


def look_up(
    path: str,
    *needs: Need,
    versions: str = CHECKED,
    fallback: Any = _NOTHING,
    probe: Callable[[], object] | None = None,
) -> Any:
    """What torch has under a private name; to be called once, when a file of this room is imported.

    Args:
        path: of the name, for `find` and for the error.
        needs: what it is for.
        versions: of torch, that are known to have it.
        fallback: what takes its place in a torch that lacks it. None is one, too: whoever takes the name asks for it.
        probe: finds it where a path can't, and raises AttributeError where it is not there.

    Returns:
        Where it is missing and nothing takes its place, a class that may be a base class, and raises `DeviceError` when
        it is called: a verb that forgot to ask `require` fails with the same text.
    """
    try:
        found, is_there = find(path, probe), True
    except (AttributeError, ImportError):
        found, is_there = fallback, False
    name = Name(path, frozenset(needs), versions, is_there, fallback is not _NOTHING)
    TABLE[path] = name
    return _missing(name) if found is _NOTHING else found


def reader_of(
    path: str,
    *needs: Need,
    versions: str = CHECKED,
    fallback: Any = _NOTHING,
    probe: Callable[[], object] | None = None,
) -> Any:
    """A function that reads a private attribute of an object, in C. Arguments as of `look_up`."""
    found = look_up(path, *needs, versions=versions, fallback=fallback, probe=probe)
    return attrgetter(path.rpartition(".")[2]) if TABLE[path].is_there else found


@dataclass(frozen=True)
class Place:
    """A private name that is replaced for a while."""

    owner: Any
    """Module or class; ``vars(owner)[name]`` is what is there now."""
    name: str


def place_of(path: str, *needs: Need, versions: str = CHECKED) -> Place:
    """Where a private name is. Arguments as of `look_up`."""
    found = look_up(path, *needs, versions=versions)
    owner, _, name = path.rpartition(".")
    return Place(find(owner) if TABLE[path].is_there else found, name)


def find(path: str, probe: Callable[[], object] | None = None) -> Any:
    """What is under a path. Raises: AttributeError, ImportError: nothing is."""
    if probe is not None:
        return probe()
    at, *parts = path.split(".")
    found: Any = import_module(at)
    for part in parts:
        at = f"{at}.{part}"
        if not hasattr(found, part):
            import_module(at)  # a module that nobody has imported yet
        found = getattr(found, part)
    return found


def error_of(asked: str, missing: Iterable[Name]) -> DeviceError:
    """What to tell of names that this torch lacks.

    Args:
        asked: what was asked for, as an error's text begins.
        missing: those names.
    """
    return DeviceError(
        asked,
        f"this is torch {torch.__version__}, which lacks {', '.join(map(str, missing))}",
        "For this torch has no public name, and nothing takes its place",
        "Install a torch that has it, or a vramkit that knows this one",
    )


def _missing(name: Name) -> type:
    def refuse(cls: type, *args: object, **kwargs: object) -> NoReturn:
        raise error_of("A private part of torch was to be used", [name])

    return type(name.path.rpartition(".")[2], (), {"__new__": refuse, "__doc__": f"Stands for {name.path}."})
