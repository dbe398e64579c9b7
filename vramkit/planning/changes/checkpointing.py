"""Gradient checkpointing: blocks keep their input, and compute what they had kept again in the backward."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ..draft import Draft
from ..facts import Facts
from . import NOTHING_TRAINS, Change, Family, LeftOut, Severity

_NAME = "gradient checkpointing"


@dataclass(frozen=True, kw_only=True)
class Checkpointing(Change):
    """Every n-th block is checkpointed."""

    blocks: tuple[str, ...]

    def write(self, draft: Draft) -> None:
        draft.imports += ["import functools", "from torch.utils.checkpoint import checkpoint"]
        draft.on_cpu.append(
            f"for path in {_listed(self.blocks)}:\n"
            "    block = model.get_submodule(path)\n"
            "    block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)"
        )


def checkpointing(facts: Facts) -> Family | LeftOut:
    """Of all repeated blocks, of every second, and so on."""
    if not facts.trains:
        return LeftOut(name=_NAME, reason=NOTHING_TRAINS)
    if not facts.blocks:
        return LeftOut(name=_NAME, reason="The model repeats no block, or there are several models.")
    if facts.compiled:
        return LeftOut(name=_NAME, reason="The model is compiled; checkpoint its blocks before it is.")
    numbers = "none; random numbers are drawn again as they were"
    if facts.normalizes_batches:
        numbers = "none in the training; running statistics of batch norms are updated twice a step"
    return Family(
        slot=_NAME,
        changes=tuple(
            Checkpointing(
                name=f"checkpoint {_which(every)} of {len(facts.blocks)} blocks",
                severity=Severity.SAME,
                numbers=numbers,
                computes=True,
                blocks=facts.blocks[::every],
            )
            for every in (8, 4, 3, 2, 1)
            if every == 1 or every < len(facts.blocks)
        ),
    )


def _which(every: int) -> str:
    return {1: "all", 2: "every 2nd", 3: "every 3rd"}.get(every, f"every {every}th")


def _listed(paths: tuple[str, ...]) -> str:
    """The paths as an expression: with a range where only a number differs."""
    for path in paths:
        for place, part in enumerate(parts := path.split(".")):
            if not part.isdigit():
                continue
            numbers = [each for path in paths if (each := _number(path, parts, place)) is not None]
            strides = {after - before for before, after in pairwise(numbers)}
            if len(numbers) == len(paths) > 2 and len(strides) == 1:
                pattern = ".".join([*parts[:place], "{number}", *parts[place + 1 :]])
                return f'(f"{pattern}" for number in range({numbers[0]}, {numbers[-1] + 1}, {strides.pop()}))'
        break
    return repr(paths)


def _number(path: str, parts: list[str], place: int) -> int | None:
    """The number at a place of a path that is otherwise the same; None: it is not."""
    own = path.split(".")
    if len(own) != len(parts) or not own[place].isdigit():
        return None
    return int(own[place]) if [*own[:place], *own[place + 1 :]] == [*parts[:place], *parts[place + 1 :]] else None
