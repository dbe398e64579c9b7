"""Steps that keep memory: whether every step leaves more allocated than the one before, and what that is. Knows tapes;
needs no torch.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ..sizes import format_size
from ..tape.events import Category, Ints, Tape

_MAX_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """What steps leave behind."""

    growth: int
    """Bytes by which ``memory_allocated()`` is larger after each step, at least."""
    grown: tuple[tuple[str, str, int], ...]
    """Category, module (empty: none) and bytes of what the last step left more of, largest first."""

    def __str__(self) -> str:
        """What grew, as a part of a sentence."""
        shown = [
            f"{format_size(size)} of {category.lower()}s" + (f" made in {module}" if module else "")
            for category, module, size in self.grown[:_MAX_SHOWN]
        ]
        return "; ".join(shown).replace("_", " ")


def find_leak(tape: Tape, ends: Ints) -> Leak | None:
    """Look for a leak; the first step is not counted, as it makes what lasts.

    Args:
        tape: of the steps.
        ends: how many events had come at the end of each.

    Returns:
        The leak; None: memory does not grow with every step, or there are fewer than three to tell by.
    """
    if len(ends) < 3:
        return None
    allocated = np.concatenate([[tape.initial_allocated], tape.allocated])[ends]
    growth = int(np.diff(allocated)[1:].min())
    if growth <= 0:
        return None
    before, after = (_alive(tape, int(end)) for end in ends[-2:])
    return Leak(growth=growth, grown=tuple((*key, size) for key, size in (after - before).most_common()))


def _alive(tape: Tape, end: int) -> Counter[tuple[str, str]]:
    """Bytes that were allocated after so many events, by category and module."""
    found: Counter[tuple[str, str]] = Counter()
    for row in tape.allocations[tape.alive_at(end - 1)]:
        module = tape.modules[row["module"]].name if row["module"] >= 0 else ""
        found[Category(int(row["category"])).name, module] += int(row["block"])
    return found
