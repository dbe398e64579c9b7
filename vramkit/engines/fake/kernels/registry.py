"""The table of rules, by operator, and which operators need none. Knows no rule itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .call import Call
from .copies import size_of
from .without_temporaries import PLAIN

Rule = Callable[[Call], None]
RULES: dict[Any, Rule] = {}
"""By operator, without its overload."""


def rule_of(func: Any) -> Rule | None:
    """The rule for an operator; None: its kernel takes its results and nothing else."""
    packet = func.overloadpacket
    found = RULES.get(packet)
    if found is None:
        name = packet.__name__
        is_plain = torch.Tag.pointwise in func.tags or func.is_view or name in PLAIN or name.startswith("_foreach_")
        RULES[packet] = found = _nothing if is_plain else _unknown
    return None if found is _nothing else found


def rule(*operators: Any) -> Callable[[Rule], Rule]:
    """Put a rule into the table."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return enter


def _nothing(call: Call) -> None:
    pass


def _unknown(call: Call) -> None:
    """No more is known of a kernel than its arguments and results; most need no more room than the largest of each."""
    results = call.result if isinstance(call.result, (tuple, list)) else [call.result]
    most = sum(
        max((size_of(each) for each in values if isinstance(each, torch.Tensor)), default=0)
        for values in ((*call.args, *call.kwargs.values()), results)
    )
    name = call.func.overloadpacket.__name__
    call.assume(f"{name} has no rule here; its kernel may take memory of its own", most)
