"""A private name of torch, looked up once: what is found there, or what is said where a torch lacks it.

Knows how a name is found, and which verb needs it; knows none of the names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter, methodcaller
from typing import Any, Literal, NoReturn

import torch

from ..errors import DeviceError

Need = Literal[
    "programs",  # whatever takes a model and a batch: checks them, and packs them for an engine
    "profile",  # marks, on any device
    "profile on CUDA",
    "profile on the CPU",
    "ranks",  # playing a rank of a distributed job
    "run",  # what `vramkit run` needs beside a profile on CUDA
    "batch size on CUDA",  # what `auto_batch_size` needs beside a profile
    "virtual engine",  # what its helper process needs beside a profile on CUDA
    "fake engine",
    "fake engine without CUDA",  # what it needs besides where there is no CUDA device
    "closed forms",
    "values",  # computing them on a virtual device
    "developers' tools",
]
"""What a private name is for."""

CHECKED = "2.8 to 2.14"
"""The versions of torch in which every name was found that says nothing else: 2.8, 2.9, 2.11, 2.12, 2.13 and 2.14."""

_NOTHING: Any = object()


@dataclass(frozen=True)
class Name:
    """A private name of torch."""

    path: str
    """Where it is: "torch._C._cuda_memorySnapshot"; of an attribute, the class whose objects have it."""
    needs: frozenset[Need]
    versions: str
    """Of torch, that are known to have it."""
    is_there: bool
    has_fallback: bool

    def __str__(self) -> str:
        return f"{self.path} (torch {self.versions} have it)"


TABLE: list[Name] = []
"""Every name that was looked up."""


def look_up(
    path: str,
    *needs: Need,
    versions: str = CHECKED,
    fallback: Any = _NOTHING,
    probe: Callable[[], object] | None = None,
) -> Any:
    """What torch has under a private name; to be called once, when a file of this room is imported.

    Args:
        path: of the name.
        needs: what it is for.
        versions: of torch, that are known to have it.
        fallback: what takes its place in a torch that lacks it. None is one, too: whoever takes the name asks for it.
        probe: finds it where a path can't, and raises AttributeError where it is not there.

    Returns:
        Where it is missing and nothing takes its place, a class that may be a base class, and raises `DeviceError` when
        it is called: a verb that forgot to ask ``needs.require`` fails with the same text.
    """
    return _look_up(path, needs, versions, fallback, probe)[0]


def reader_of(
    path: str,
    *needs: Need,
    versions: str = CHECKED,
    fallback: Any = _NOTHING,
    probe: Callable[[], object] | None = None,
) -> Any:
    """A function in C that reads a private attribute of an object. Arguments as of `look_up`."""
    found, is_there = _look_up(path, needs, versions, fallback, probe)
    return attrgetter(path.rpartition(".")[2]) if is_there else found


def caller_of(path: str, *needs: Need, versions: str = CHECKED) -> Any:
    """A function in C that calls a private method of an object, without arguments. Arguments as of `look_up`."""
    found, is_there = _look_up(path, needs, versions, _NOTHING, None)
    return methodcaller(path.rpartition(".")[2]) if is_there else found


def word_of(path: str, *needs: Need) -> str:
    """The name of a private attribute that only some objects have; in a torch without it, a name that none has.

    No probe can tell that torch calls it something else now, so it is to be used only where to overlook it is no lie.
    Arguments as of `look_up`.
    """
    name = path.rpartition(".")[2]
    return name if _look_up(path, needs, CHECKED, "", lambda: name)[1] else ""


@dataclass(frozen=True)
class Place:
    """Where a private name is that is replaced for a while, or changes."""

    owner: Any
    """Module or class; ``vars(owner)[name]`` is what is there now."""
    name: str


def place_of(path: str, *needs: Need, versions: str = CHECKED, fallback: Any = _NOTHING) -> Place:
    """Where a private name is. Arguments as of `look_up`; a fallback is an owner that has the name."""
    owner, _, name = path.rpartition(".")

    def probe() -> Any:
        found = find(owner, None)
        getattr(found, name)
        return found

    return Place(_look_up(path, needs, versions, fallback, probe)[0], name)


def mentioned(name: str, function: Callable[..., object]) -> str:
    """A probe: a name that a public function of torch uses, where objects have it only when they are made.

    Raises: AttributeError: the function uses it no more.
    """
    if name not in inspect.unwrap(function).__code__.co_names:
        raise AttributeError(name)
    return name


def find(path: str, probe: Callable[[], object] | None) -> Any:
    """What is under a path. Raises: AttributeError, ImportError: nothing is."""
    if probe is not None:
        return probe()
    at, *parts = path.split(".")
    found: Any = import_module(at)
    for part in parts:
        at = f"{at}.{part}"
        # A module that nobody has imported yet, or that its package doesn't show, as torch.optim doesn't its optimizer.
        found = getattr(found, part) if hasattr(found, part) else import_module(at)
    return found


def error_of(asked: str, missing: Iterable[Name]) -> DeviceError:
    """What to tell of names that this torch lacks.

    Args:
        asked: what was asked for, as an error's text begins.
        missing: those names.
    """
    return DeviceError(
        asked,
        f"this is torch {torch.__version__}, which lacks {', '.join(dict.fromkeys(map(str, missing)))}",
        "There is no public name for it, and nothing takes its place",
        "Install a torch that has it, or a vramkit that knows this one",
    )


def _look_up(
    path: str, needs: tuple[Need, ...], versions: str, fallback: Any, probe: Callable[[], object] | None
) -> tuple[Any, bool]:
    try:
        found, is_there = find(path, probe), True
    except (AttributeError, ImportError):
        found, is_there = fallback, False
    name = Name(path, frozenset(needs), versions, is_there, fallback is not _NOTHING)
    TABLE.append(name)
    return (_missing(name) if found is _NOTHING else found), is_there


def _missing(name: Name) -> type:
    def refuse(cls: type, *args: object, **kwargs: object) -> NoReturn:
        raise error_of("A private part of torch was to be used", [name])

    return type(name.path.rpartition(".")[2], (), {"__new__": refuse, "__doc__": f"Stands for {name.path}."})
