"""What a saved result may hold: everything that a report will read is checked here, when a file is opened.

A table that points outside another would fail later, far from the file that is to blame. Knows the tape's tables and
the types of JSON; neither the file's format nor any kind of result.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import cast, get_args

import numpy as np
import numpy.typing as npt

from ..errors import shown
from ..gpus.nccl import NCCL
from ..tape.events import Action, Category, Evaluation, Module, Phase, Table
from ..tape.stacks import Frame, Stacks, Whose
from ..torch_releases import TieBreak

MAX_NUMBER = (1 << 62) - 1
"""Of a number, and of the sum of all sizes: neither then overflows 64 bits, whatever is added up."""

_MAX_TEXT = 10_000  # characters
_MAX_DEPTH = 200  # modules inside one another: readers walk the tree by recursion
_MAX_DIMENSIONS = 64
_DEVICE = re.compile(r"\w{1,64}(:\d{1,9})?", re.ASCII)
_CODES = {"action": len(Action), "phase": len(Phase), "category": len(Category)}
_FROM_0 = ("step", "size", "requested", "block", "pool", "forward", "operator", "optimizer", "begin", "end")


class DamagedError(Exception):
    """What is wrong with a file, in words that follow "it can't be read:"."""


# -- values of JSON ----------------------------------------------------------------------------------------------------


def record(value: object, what: str) -> dict[str, object]:
    """A dict. This and the functions below raise `DamagedError` where a value is something else.

    Args:
        value: from a file.
        what: it is, for the error.
    """
    if not isinstance(value, dict):
        raise _wrong(value, what)
    return value


def items(value: object, what: str, maximum: int | None = None) -> list[object]:
    """A list, of at most so many items."""
    if not isinstance(value, list):
        raise _wrong(value, what)
    if maximum is not None and len(value) > maximum:
        raise DamagedError(f"there are {len(value):,} of {what}, and at most {maximum:,} can be")
    return value


def text(value: object, what: str) -> str:
    """A text that a report can show."""
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise _wrong(value, what)
    return value


def texts(value: object, what: str) -> tuple[str, ...]:
    """Many texts."""
    return tuple(text(each, what) for each in items(value, what))


def integer(value: object, what: str, *, minimum: int = 0, maximum: int = MAX_NUMBER) -> int:
    """A whole number within bounds."""
    if type(value) is not int or not minimum <= value <= maximum:
        raise _wrong(value, what)
    return value


def boolean(value: object, what: str) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise _wrong(value, what)
    return value


def nccl_of(value: object) -> NCCL | None:
    """NCCL's communicators; None: there are none."""
    if value is None:
        return None
    saved = record(value, "NCCL's memory")
    size = saved["size"]
    return NCCL(
        communicators=integer(saved["communicators"], "the number of communicators"),
        size=None if size is None else integer(size, "NCCL's memory"),
    )


def tie_break(value: object) -> TieBreak:
    """How the allocator broke ties."""
    if value not in get_args(TieBreak):
        raise _wrong(value, "the tie-break")
    return cast(TieBreak, value)


def device_name(value: object) -> str:
    """A device in torch's words, which results show as it is."""
    name = text(value, "the device")
    if not _DEVICE.fullmatch(name):
        raise _wrong(value, "the device")
    return name


def _wrong(value: object, what: str) -> DamagedError:
    return DamagedError(f"{what} can't be {shown(value)}")


# -- modules and tables ------------------------------------------------------------------------------------------------


def modules_of(value: object) -> tuple[Module, ...]:
    """Modules, each after the one that it is part of, and named after it."""
    modules: list[Module] = []
    depths: list[int] = []
    total = 0
    for index, each in enumerate(items(value, "the modules")):
        module = _module(record(each, "a module"), index)
        depth = 0
        if module.parent >= 0:
            depth = depths[module.parent] + 1
            if not module.name.startswith(f"{modules[module.parent].name}."):
                raise DamagedError(f"the module {shown(module.name)} is not named after the one that it is part of")
        total += module.parameters
        if depth > _MAX_DEPTH:
            raise DamagedError(f"more than {_MAX_DEPTH} modules are inside one another")
        if total > MAX_NUMBER:
            raise DamagedError("the modules' parameters are more than can be")
        modules.append(module)
        depths.append(depth)
    return tuple(modules)


def _module(saved: dict[str, object], index: int) -> Module:
    shape = items(saved.get("output_shape", []), "a module's output shape", _MAX_DIMENSIONS)
    module = Module(
        name=text(saved["name"], "a module's name"),
        kind=text(saved["kind"], "a module's class"),
        parent=integer(saved.get("parent", -1), "a module's parent", minimum=-1, maximum=index - 1),
        parameters=integer(saved.get("parameters", 0), "the size of a module's parameters"),
        numel=integer(saved.get("numel", 0), "how many numbers a module's parameters are"),
        calls=integer(saved.get("calls", 0), "the number of a module's calls"),
        output_shape=tuple(integer(size, "a size of a module's output") for size in shape),
    )
    if math.prod(max(size, 1) for size in module.output_shape) > MAX_NUMBER:
        raise DamagedError("a module's output is larger than can be")
    return module


def evaluations_of(value: object, modules: int) -> tuple[Evaluation, ...]:
    """What was evaluated.

    Args:
        value: from a file.
        modules: how many there are.
    """
    found = []
    for each in items(value, "the evaluations", modules):
        saved = record(each, "an evaluation")
        forwards = integer(saved["forwards"], "the number of an evaluation's forwards")
        found.append(
            Evaluation(
                module=integer(saved["module"], "an evaluation's model", maximum=modules - 1),
                forwards=forwards,
                with_graph=integer(saved["with_graph"], "the number of its graphs", maximum=forwards),
            )
        )
    return tuple(found)


def frames_of(value: object) -> tuple[Frame, ...]:
    """Frames of stacks."""
    found = []
    for each in items(value, "the frames"):
        parts = items(each, "a frame")
        if len(parts) != len(fields(Frame)):
            raise _wrong(each, "a frame")
        file, number, function, whose = parts
        found.append(
            Frame(
                file=text(file, "a frame's file"),
                number=integer(number, "a frame's line"),
                function=text(function, "a frame's function"),
                whose=Whose(integer(whose, "whose a frame is", maximum=max(Whose))),
            )
        )
    return tuple(found)


def check_stacks(stacks: Stacks, allocations: int) -> None:
    """Raise `DamagedError` where an index can't be, or a stack comes before the one that called it.

    Args:
        stacks: from a file.
        allocations: how many there are.
    """
    table, of = stacks.table, stacks.of
    if len(of) != allocations or not _points_into(of, len(table)):
        raise DamagedError("the column stack_of points outside its table, or is not one of each allocation")
    if not _points_into(table["frame"], len(stacks.frames)) or (table["frame"] < 0).any():
        raise DamagedError("the column stacks.frame points outside its table")
    if (table["parent"] < -1).any() or (table["parent"] >= np.arange(len(table))).any():
        raise DamagedError("the column stacks.parent points to a row that does not come before")


def _points_into(column: npt.NDArray[np.int32], length: int) -> bool:
    return not len(column) or bool(column.min() >= -1 and column.max() < length)


def check_tables(tables: Mapping[str, Table], modules: int, names: int, operators: int) -> None:
    """Raise `DamagedError` where an index, a code or a size can't be, or events and allocations don't belong together.

    Args:
        tables: ``events``, ``allocations``, ``segments`` and ``passes``, each with its columns.
        modules: how many modules there are.
        names: how many names.
        operators: how many operators.
    """
    events, allocations = tables["events"], tables["allocations"]
    ends = {"module": modules, "name": names, "allocation": len(allocations), "born": len(events), "died": len(events)}
    for title, table in tables.items():
        for column in (table.dtype.names or ()) if len(table) else ():
            values = table[column]
            if column in ends and (values.min() < -1 or values.max() >= ends[column]):
                raise DamagedError(f"the column {title}.{column} points outside its table")
            if column in _CODES and values.max() >= _CODES[column]:
                raise DamagedError(f"the column {title}.{column} has an unknown code")
            if column in _FROM_0 and values.min() < 0:
                raise DamagedError(f"the column {title}.{column} has a number below 0")
    passes = tables["passes"]
    forwards = np.count_nonzero(np.isin(passes["phase"], (Phase.FORWARD, Phase.EVALUATION)))
    if allocations["forward"].max(initial=0) > forwards:
        raise DamagedError("the column allocations.forward points outside its table")
    if allocations["operator"].max(initial=0) > operators:
        raise DamagedError("the column allocations.operator points outside its table")
    if (passes["begin"] > passes["end"]).any() or passes["end"].max(initial=0) > len(events):
        raise DamagedError("the column passes.end points outside its table, or before its beginning")
    if (allocations["requested"] > allocations["block"]).any():
        raise DamagedError("the column allocations.block has less than was asked for")
    _check_lives(events, allocations)
    moves = events["size"][(events["action"] >= Action.SEGMENT_ALLOC) & (events["action"] != Action.OOM)]
    sizes = (allocations["block"], tables["segments"]["size"], moves)
    if sum(float(each.sum(dtype=np.float64)) for each in sizes) > MAX_NUMBER:
        raise DamagedError("its sizes add up to more than can be")


def check_optimizers(passes: Table, optimizers: int) -> None:
    """Raise `DamagedError` where a pass is of no optimizer.

    Args:
        passes: dtype ``PASS``.
        optimizers: how many there are.
    """
    if passes["optimizer"].max(initial=0) > optimizers:
        raise DamagedError("the column passes.optimizer points outside its table")


def _check_lives(events: Table, allocations: Table) -> None:
    """Every allocation begins at an event of its own, and ends at a later one or not at all."""
    for column, action in (("born", Action.ALLOC), ("died", Action.FREE)):
        rows = np.flatnonzero(allocations[column] >= 0)
        at = allocations[column][rows]
        if (events["action"][at] != action).any() or (events["allocation"][at] != rows).any():
            raise DamagedError(f"the column allocations.{column} points to events of something else")
    if np.count_nonzero(events["action"] == Action.ALLOC) != np.count_nonzero(allocations["born"] >= 0):
        raise DamagedError("the column events.allocation lacks the allocation of an event")
    dead = allocations["died"] >= 0
    if (allocations["died"] <= allocations["born"])[dead].any():
        raise DamagedError("the column allocations.died has an end before the beginning")
