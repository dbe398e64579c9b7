"""Which modules and names of two tapes are the same. Knows how models are wrapped, and nothing of memory.

Matched by name: the qualified one, without what wraps a model to compile or to distribute it. Where each tape has one
model, these are matched, whatever they are called. A line of source that has moved within its function is matched if no
other line of it is in question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..reports.tree import shown_name
from ..tape.events import Ints, Module, Tape
from ..tape.stacks import Stacks

_WRAPPERS = {"OptimizedModule", "DistributedDataParallel", "DataParallel", "FullyShardedDataParallel"}
"""Classes that hold a whole model, and nothing else."""


@dataclass(frozen=True)
class Matched:
    """The modules of two tapes as one list, parents first, and where each tape's are in it."""

    modules: tuple[Module, ...]
    before: Ints
    """Of each module of the first tape its place; shape ``(modules,)``."""
    after: Ints


def match_modules(before: Tape, after: Tape) -> Matched:
    """Bring the modules of two tapes together by name; of one in both, the later tape's class and shape stay."""
    unwrapped = [_unwrapped(tape.modules) for tape in (before, after)]
    roots = [[module for module in modules if module.parent < 0] for modules, _ in unwrapped]
    rename = {}
    if len(roots[0]) == len(roots[1]) == 1:
        rename = {roots[0][0].name: roots[1][0].name}
    joined: list[Module] = []
    place: dict[str, int] = {}
    places = []
    for (modules, where), renamed in zip(unwrapped, (rename, {}), strict=True):
        names: list[str] = []
        for module in modules:
            name = renamed.get(module.name, module.name)
            if module.parent >= 0:
                name = names[module.parent] + module.name[len(modules[module.parent].name) :]
            names.append(name)
            parent = place[names[module.parent]] if module.parent >= 0 else -1
            if name in place:
                joined[place[name]] = replace(module, name=name, parent=joined[place[name]].parent)
            else:
                place[name] = len(joined)
                joined.append(replace(module, name=name, parent=parent))
        own = np.array([place[name] for name in names], np.int64)
        places.append(own[where] if len(where) else where)
    return Matched(tuple(joined), *places)


def _unwrapped(modules: Sequence[Module]) -> tuple[list[Module], Ints]:
    """Modules without wrappers, each of which is one with what it holds; and where each was put."""
    kept: list[Module] = []
    where = np.zeros(len(modules), np.int64)
    for index, module in enumerate(modules):
        if module.parent < 0:
            where[index] = len(kept)
            kept.append(module)
            continue
        parent, home = modules[module.parent], int(where[module.parent])
        local = module.name[len(parent.name) + 1 :]
        if parent.kind in _WRAPPERS:
            where[index] = home
            name = kept[home].name if kept[home].parent >= 0 else module.kind
            kept[home] = replace(module, name=name, parent=kept[home].parent)
        else:
            where[index] = len(kept)
            kept.append(replace(module, name=f"{kept[home].name}.{local}", parent=home))
    return kept, where


def match_lines(before: Stacks, after: Stacks) -> tuple[list[str], list[str]]:
    """What each frame of two recordings is called in both; at last that of none, which is empty.

    Args:
        before, after: their stacks.
    """
    sides = before, after
    names = [[*side.texts, ""] for side in sides]
    used = [np.unique(side.lines[side.lines >= 0]).tolist() for side in sides]
    known = [{names[i][line] for line in used[i]} for i in (0, 1)]
    moved: list[dict[tuple[str, str], list[int]]] = [{}, {}]
    for i, side in enumerate(sides):
        for line in used[i]:
            if names[i][line] not in known[1 - i]:
                frame = side.frames[line]
                moved[i].setdefault((frame.file.rpartition("/")[2], frame.function), []).append(line)
    for (file, function), lines in moved[0].items():
        others = moved[1].get((file, function), [])
        if len(lines) == len(others) == 1:
            [line], [other] = lines, others
            name = f"{file}:{before.frames[line].number}, now {after.frames[other].number} in {function}"
            names[0][line] = names[1][other] = name
    return names[0], names[1]


def label_of(name: str, modules: Sequence[str], module: int) -> str:
    """A tensor's name, with the name of its module as both results have it.

    Args:
        name: ``"GPT.h.0.up.weight"`` or ``"exp_avg of GPT.h.0.up.weight"``.
        modules: names of the modules.
        module: that it belongs to; -1: none.
    """
    if module < 0:
        return shown_name(name)
    head, of, own = name.rpartition(" of ")
    return shown_name(f"{head}{of}{modules[module]}.{own.rpartition('.')[2]}")
