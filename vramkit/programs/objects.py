"""The models and optimizers that a verb is given: one, several, or a dict of them by name. Knows what they may be, for
verbs that measure and verbs that predict alike; not what is done with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch

from ..errors import UsageError
from ..torch_internals.modules import class_name, unwrapped

Models = torch.nn.Module | Sequence[torch.nn.Module] | Mapping[str, torch.nn.Module]
"""One model, several, or several by name."""
Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | Mapping[str, torch.optim.Optimizer]
"""One optimizer, several, or several by name."""
OptimizerOrFactory = Optimizers | Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
"""Optimizers, or what makes one from parameters: a class, a lambda."""

_T = TypeVar("_T")


def models_of(
    asked: str, given: object, instead: str = "Pass an nn.Module, a sequence or a dict of them"
) -> dict[str, torch.nn.Module]:
    """Models by name. Those that have none go by their classes, whatever wraps them: ``"Net"``, ``"Net#2"``.

    Args:
        asked: what was asked for, as an error's text begins.
        given: a model, any number of them, or a dict of them; None: none.
        instead: what to give in place of something else.

    Raises:
        UsageError: something else is given.
    """
    return _named(asked, "model", given, torch.nn.Module, "an nn.Module", instead)


def optimizers_of(
    asked: str, given: object, instead: str = "Pass a torch.optim.Optimizer, a sequence or a dict of them"
) -> dict[str, torch.optim.Optimizer]:
    """Optimizers by name; as `models_of`."""
    return _named(asked, "optimizer", given, torch.optim.Optimizer, "a torch.optim.Optimizer", instead)


def _named(asked: str, word: str, given: object, kind: type[_T], wanted: str, instead: str) -> dict[str, _T]:
    found: dict[str, _T] = {}
    for name, each in _listed(given, kind):
        if not isinstance(each, kind):
            shown = f"{each.__name__}, a class" if isinstance(each, type) else f"{type(each).__name__} {each!r:.60}"
            hint = ": make an object of it first" if isinstance(each, type) else ""
            raise UsageError(asked, f"the {word} is {shown}{hint}", f"That is not {wanted}", instead)
        own = class_name(unwrapped(each)) if isinstance(each, torch.nn.Module) else type(each).__name__
        found[_unique(name or own, found)] = each
    return found


def _listed(given: object, kind: type) -> Iterator[tuple[str, object]]:
    """Each object with the name that it was given, empty where it was given none."""
    if isinstance(given, Mapping):
        yield from ((str(name), each) for name, each in given.items())
    elif isinstance(given, Iterable) and not isinstance(given, (kind, str, bytes, type, torch.Tensor)):
        yield from (("", each) for each in given)
    elif given is not None:
        yield "", given


def _unique(name: str, taken: Mapping[str, object]) -> str:
    unique, number = name, 1
    while unique in taken:
        number += 1
        unique = f"{name}#{number}"
    return unique
