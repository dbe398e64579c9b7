"""Functions that are written out of single operations, each of which keeps a tensor. Knows no other advice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ...sizes import format_size
from ...tape.events import Category, Ints, Phase
from ..layout import counted
from ..scene import Scene
from ..tree import shown_name
from .advised import Advice

_KEEPS = 2
"""A module that keeps so many tensors of a call, beside its result and each as large as that, is written out."""


def _written_out(scene: Scene) -> Iterator[Advice]:
    """Activation functions above all, such as GELU by ``tanh``. A fused one keeps what it is given, which whoever made
    it is charged with, and makes what it returns.
    """
    tape = scene.result.tape
    table = tape.allocations
    plain = scene.is_leaf[:-1] & np.array([not module.parameters for module in tape.modules], bool)
    kept = scene.category == Category.ACTIVATION
    found = np.zeros(len(table), bool)
    named = set[int]()
    for call in _calls(scene, np.flatnonzero(plain), Phase.FORWARD):
        result = call[-1]
        own = call[kept[call] & (call != result)]
        if len(own) < _KEEPS or (table["requested"][own] != table["requested"][result]).any():
            continue
        found[own] = True
        named.add(int(table["module"][own[0]]))
    if not scene.at(found):
        return
    gone = found.copy()
    for call in _calls(scene, np.array([*named]), Phase.BACKWARD):
        gone[call] = True
        gone[call[np.where(table["died"][call] < 0, len(scene.block), table["died"][call]).argmax()]] = False  # goes on
    first = tape.modules[min(named)]
    several = " and others" * (len(named) > 1)
    theirs = ' (transformers: the configuration\'s activation "gelu_pytorch_tanh")' * (
        first.kind == "NewGELUActivation"
    )
    yield Advice(
        saves=scene.saved(np.where(gone, scene.block, 0)),
        text=f'use a fused function, such as F.gelu(approximate="tanh") or F.silu{theirs}, or torch.compile, for '
        f"what {shown_name(first.name, 60)}{several} ({first.kind}) does in single operations: beside "
        f"its results they keep {counted(int((found & scene.moment.alive).sum()), 'tensor')} for the backward, "
        f"{format_size(scene.at(found))}",
    )


def _calls(scene: Scene, modules: Ints, phase: Phase) -> list[Ints]:
    """The rows of what some modules made, those of each call together."""
    table = scene.result.tape.allocations
    rows = np.flatnonzero((table["phase"] == phase) & np.isin(table["module"], modules))
    calls = np.split(rows, np.flatnonzero((np.diff(rows) > 1) | (np.diff(table["module"][rows]) != 0)) + 1)
    return [call for call in calls if len(call)]


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (_written_out,)
