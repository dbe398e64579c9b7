"""The table of rules, by operator, and which operators need none. Knows no rule itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch

from .arguments import Binder, binders
from .call import Call
from .without_temporaries import WITHOUT_TEMPORARIES

Rule = tuple[Callable[..., None], Binder]
"""A function, and what finds its arguments after the `Call`."""
_Function = TypeVar("_Function", bound=Callable[..., None])
RULES: dict[Any, Rule] = {}
"""By operator, with its overload."""


def rule_of(func: Any) -> Rule | None:
    """The rule for an operator; None: its kernel takes its results and nothing else."""
    return RULES.get(func) or _of_others(func)


def rule(*operators: Any) -> Callable[[_Function], _Function]:
    """Put a rule into the table, for operators without their overloads.

    The rule's first parameter is the `Call`; the others are called as the operators' schemas call the arguments.

    Raises:
        DeviceError: an operator of this torch has no argument of such a name.
    """

    def enter(function: _Function) -> _Function:
        for operator in operators:
            for overload, binder in binders(function, operator, skip=1):
                RULES[overload] = function, binder
        return function

    return enter


@cache
def _of_others(func: Any) -> Rule | None:
    name = func.overloadpacket.__name__
    is_listed = name in WITHOUT_TEMPORARIES or name.startswith("_foreach_")
    return None if is_listed or torch.Tag.pointwise in func.tags or func.is_view else (_unknown, _all)


def _all(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    return [*args, *kwargs.values()]


def _unknown(call: Call, *arguments: Any) -> None:
    """No more is known of a kernel than its arguments and results; it seldom needs more than the largest of each."""
    results = call.result if isinstance(call.result, (tuple, list)) else [call.result]
    size = sum(
        max((each.nbytes for each in values if isinstance(each, torch.Tensor)), default=0)
        for values in (arguments, results)
    )
    call.assume(f"{call.operator.__name__} has no rule here; its kernel may take memory of its own", size)
