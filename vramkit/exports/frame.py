"""A result's allocations as a table of pandas. Knows which columns there are: those of ``MemoryResult.to_records``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..tape.events import Category, Ints, Phase
from ..tape.memory import MemoryResult
from . import optional

if TYPE_CHECKING:
    from pandas import DataFrame


def frame(result: MemoryResult) -> DataFrame:
    """A row for each allocation, in order of birth; see `ReadableResult.to_frame`."""
    pandas = optional.load("A result was to become a table of pandas", "pandas", "pandas")
    tape = result.tape
    nobody = np.full(len(tape.allocations), -1)
    told = tape.knows_phases | (tape.allocations["phase"] != Phase.OUTSIDE)
    table, time = tape.allocations, tape.events["time"]

    def coded(codes: Ints, names: list[str]) -> Any:
        return pandas.Categorical.from_codes(codes, categories=names)

    def texts(values: npt.NDArray[np.object_]) -> Any:
        try:
            return pandas.Series(values)
        except UnicodeEncodeError:  # where pandas holds texts in Arrow, which has no half of a pair of surrogates
            return pandas.Series(values, dtype=object)

    def named(column: str, names: list[str]) -> Any:
        return texts(np.array([*names, None], object)[table[column]])  # -1 takes the last

    def known(values: Ints, at: Ints) -> Any:
        """Whole numbers, and NA where the event is -1."""
        return pandas.arrays.IntegerArray(np.where(at >= 0, values, 0), at < 0)

    def when(at: Ints) -> Any:
        return known(np.append(time, 0)[at], at)

    return pandas.DataFrame(
        {
            "category": coded(table["category"].astype(np.int64), [each.name for each in Category]),
            "phase": coded(np.where(told, table["phase"].astype(np.int64), -1), [each.name for each in Phase]),
            "module": named("module", [module.name for module in tape.modules]),
            "name": named("name", list(tape.names)),
            "step": table["step"].astype(np.int64) if tape.knows_phases else known(table["born"], nobody),
            "requested": table["requested"],
            "block": table["block"],
            "born": table["born"],
            "died": known(table["died"], table["died"]),
            "allocated_at": when(table["born"]),
            "freed_at": when(table["died"]),
            "stream": table["stream"],
            "line": texts(np.array(tape.lines, object)),
            "operator": texts(np.array(tape.made_by, object)),
        }
    )
