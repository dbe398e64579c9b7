"""One device's memory over a tape: its peak, its steps, its modules, its failures. Knows the tape and no report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..gpus.nccl import NCCL
from ..sizes import format_size
from .breakdown import Breakdown
from .events import Action, Category, Phase, Tape
from .timeline import Timeline
from .usage import ModuleUsage, PhaseUsage, StepUsage, module_tree, phase_table, step_table


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfMemory:
    """An allocation that failed during the recording."""

    event: int
    """Index of the event in the tape."""
    requested: int
    """Bytes that were asked for."""
    phase: Phase
    module: str
    """Name of the module in whose code it happened; empty: in none."""
    breakdown: Breakdown
    """What held the memory at that moment."""
    device_free: int = 0
    """Bytes that the device had free then, of all processes; 0: not known."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryResult:
    """What one device's memory was used for, over a tape."""

    tape: Tape
    device_name: str = ""
    """What the device calls itself, "NVIDIA A100-SXM4-40GB"; empty: not known."""
    capacity: int = 0
    """Bytes of the device; 0: not known, or the host's memory."""
    outside: int = 0
    """Bytes in use on the device that are not this allocator's, at the end; 0: not known."""
    nccl: NCCL | None = None
    """NCCL's communicators on the device, at the end, and what they have of ``outside``; None: there are none."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of torch and vramkit that made the tape."""
    notes: tuple[str, ...] = ()
    """What could not be known, in sentences."""

    @property
    def device(self) -> str:
        """The device, in torch's words: "cuda:0" or "cpu"."""
        return self.tape.device

    def each_device(self) -> Iterator[MemoryResult]:
        """This result, and those of other devices where there are some."""
        yield self

    @cached_property
    def timeline(self) -> Timeline:
        """Bytes by category after each event."""
        return Timeline(self.tape, self.outside)

    @cached_property
    def peak(self) -> Breakdown:
        """Where the memory was when ``memory_allocated()`` was highest."""
        return self.timeline.breakdown_at(self.timeline.peak_moment)

    @cached_property
    def final(self) -> Breakdown:
        """Where the memory was at the end."""
        return self.timeline.breakdown_at(-1)

    @property
    def peak_allocated(self) -> int:
        """Highest ``memory_allocated()`` in bytes."""
        return self.tape.peak_allocated

    @property
    def peak_reserved(self) -> int:
        """Highest ``memory_reserved()`` in bytes: this, and not the allocated memory, decides what fits."""
        return self.tape.peak_reserved

    @property
    def is_window(self) -> bool:
        """Whether this begins in the middle: what was highest before is not known."""
        return self.tape.is_window

    @cached_property
    def is_moment(self) -> bool:
        """Whether this is one moment, of which no history was kept: nothing is allocated or freed in it."""
        tape = self.tape
        return tape.is_window and not self.out_of_memory and not (tape.deltas.any() or np.diff(tape.reserved).any())

    @cached_property
    def steps(self) -> tuple[StepUsage, ...]:
        """Each training step, with its phases; none of a snapshot that torch wrote, which knows no steps."""
        return step_table(self.tape, self.phases) if self.tape.knows_phases else ()

    @cached_property
    def phases(self) -> tuple[PhaseUsage, ...]:
        """Each phase of each training step, in the order in which they were first met; none of a snapshot."""
        return phase_table(self.tape) if self.tape.knows_phases else ()

    @cached_property
    def by_module(self) -> tuple[ModuleUsage, ...]:
        """Usage of every module, as one tree for each model."""
        return module_tree(self.tape)

    @cached_property
    def out_of_memory(self) -> tuple[OutOfMemory, ...]:
        """Every allocation that failed."""
        events = self.tape.events
        return tuple(
            OutOfMemory(
                event=int(event),
                requested=int(events["size"][event]),
                phase=Phase(int(events["phase"][event])),
                module=self._module_name(int(events["module"][event])),
                breakdown=self.timeline.breakdown_at(int(event) + 1),
                device_free=int(events["address"][event]),
            )
            for event in np.flatnonzero(events["action"] == Action.OOM)
        )

    def _module_name(self, index: int) -> str:
        return self.tape.modules[index].name if index >= 0 else ""

    def to_records(self) -> list[dict[str, Any]]:
        """Every allocation as a plain dictionary, in order of birth: for pandas, JSON or a query of one's own.

        Sizes are bytes, times microseconds; ``died`` and ``freed_at`` are None for what was alive at the end. ``line``
        is the line that made it, ``"train.py:42 in forward"``, of ``profile(..., stacks=True)``, and ``operator`` the
        operator, ``"aten::mm (MmBackward0)"``; None: not known. Of a snapshot ``step`` is None, and ``phase`` is where
        no frame says it.
        """
        events, modules, names = self.tape.events, self.tape.modules, self.tape.names
        lines, made_by, knows = self.tape.lines, self.tape.made_by, self.tape.knows_phases
        return [
            {
                "category": Category(int(row["category"])).name,
                "phase": Phase(int(row["phase"])).name if knows or row["phase"] != Phase.OUTSIDE else None,
                "module": modules[row["module"]].name if row["module"] >= 0 else None,
                "name": names[row["name"]] if row["name"] >= 0 else None,
                "step": int(row["step"]) if knows else None,
                "requested": int(row["requested"]),
                "block": int(row["block"]),
                "born": int(row["born"]),
                "died": int(row["died"]) if row["died"] >= 0 else None,
                "allocated_at": int(events["time"][row["born"]]) if row["born"] >= 0 else None,
                "freed_at": int(events["time"][row["died"]]) if row["died"] >= 0 else None,
                "stream": int(row["stream"]),
                "line": line,
                "operator": operator,
            }
            for row, line, operator in zip(self.tape.allocations, lines, made_by, strict=True)
        ]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.device}: peak allocated {format_size(self.peak_allocated)}, "
            f"reserved {format_size(self.peak_reserved)}, {len(self.tape.events):,} events)"
        )
