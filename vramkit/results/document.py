"""A result as JSON can carry it: what ``--json`` of every verb writes of one. Knows the schema; writes no file.

docs/json.md describes it for those who read it. Names and meanings stay as they are within a number of the schema
(``vramkit.cli.saving``); new ones may come. Bytes are whole numbers; None (``null``) is what is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from ..reports.advice import advise
from ..reports.moment import Moment, largest_lines, largest_tensors, moment_of, phase_at
from ..tape.breakdown import Breakdown
from ..tape.events import Category, Phase, Tape
from ..tape.memory import MemoryResult, OutOfMemory
from ..tape.usage import ModuleUsage, StepUsage


def document(result: MemoryResult) -> dict[str, Any]:
    """A result, of all its devices: figures, peak, steps, modules, advice and notes; not the single allocations."""
    return {
        "kind": type(result).__name__,
        "versions": dict(result.versions),
        "devices": [_device(each) for each in result.each_device()],
    }


def metrics(result: MemoryResult) -> dict[str, int]:
    """A device's figures as one flat dict; bytes, but for the last three, which are counts."""
    peak = result.peak
    figures = {
        "peak_allocated": result.peak_allocated,
        "peak_reserved": result.peak_reserved,
        "peak_used": result.peak_reserved + result.outside,
        "final_allocated": result.final.allocated,
        **({"capacity": result.capacity} if result.capacity else {}),
    }
    at_peak = {f"peak_{each.name}": getattr(peak, each.name) for each in fields(Breakdown)}
    counts = {
        "steps": len(result.steps),
        "events": len(result.tape.events),
        "failed_allocations": len(result.out_of_memory),
    }
    return {**figures, **at_peak, **counts}


def breakdown(part: Breakdown) -> dict[str, int]:
    """Every part of a breakdown, and its sums."""
    sums = {name: getattr(part, name) for name in ("requested", "allocated", "reserved", "used")}
    return {**asdict(part), **sums}


def failure(failed: OutOfMemory) -> dict[str, Any]:
    """An allocation that failed."""
    return {
        "event": failed.event,
        "requested": failed.requested,
        "device_free": failed.device_free or None,
        "phase": failed.phase.name,
        "module": failed.module or None,
        "breakdown": breakdown(failed.breakdown),
    }


def _device(result: MemoryResult) -> dict[str, Any]:
    moment = moment_of(result)
    highest = result.timeline.by_category.max(axis=0, initial=0).tolist()
    return {
        "device": result.device,
        "device_name": result.device_name or None,
        "capacity": result.capacity or None,
        "outside": result.outside or None,
        "nccl": None if result.nccl is None else asdict(result.nccl),
        "alloc_conf": result.tape.alloc_conf,
        "is_window": result.is_window,
        "peak_allocated": result.peak_allocated,
        "peak_reserved": result.peak_reserved,
        "peak": {**breakdown(result.peak), **_where(result)},
        "final": breakdown(result.final),
        "highest": {category.name: highest[category] for category in Category},
        "steps": [_step(each) for each in result.steps],
        "modules": _modules(result.by_module),
        "largest_tensors": [
            {
                **asdict(each),
                "category": each.category.name,
                "phase": _phase(result.tape, each.phase),
                "names": list(each.names),
                "lines": list(each.lines),
                "operators": list(each.operators),
            }
            for each in largest_tensors(result, moment)
        ]
        if len(result.tape.allocations)
        else [],
        "largest_lines": [
            {**asdict(each), "line": each.line or None, "largest": each.largest and each.largest.name}
            for each in largest_lines(result, moment)
        ],
        "advice": _advice(result, moment),
        "out_of_memory": [{**failure(each), "phase": _phase(result.tape, each.phase)} for each in result.out_of_memory],
        "events": len(result.tape.events),
        "notes": list(result.notes),
    }


def _where(result: MemoryResult) -> dict[str, Any]:
    """When allocated memory was highest."""
    tape = result.tape
    if tape.peak_event < 0:
        return {"step": None, "phase": None, "module": None}
    row = tape.events[tape.peak_event]
    if not tape.knows_phases:
        return {"step": None, "phase": _phase(tape, phase_at(tape, tape.peak_event)), "module": None}
    module = tape.modules[row["module"]].name if row["module"] >= 0 else None
    return {"step": int(row["step"]), "phase": Phase(int(row["phase"])).name, "module": module}


def _phase(tape: Tape, phase: Phase) -> str | None:
    return phase.name if tape.knows_phases or phase is not Phase.OUTSIDE else None


def _step(step: StepUsage) -> dict[str, Any]:
    def figures(part: Any) -> dict[str, int]:
        return {name: getattr(part, name) for name in ("events", "peak_allocated", "peak_reserved", "end_allocated")}

    phases = [{"phase": each.phase.name, **figures(each)} for each in step.phases]
    return {"step": step.step, **figures(step), "phases": phases}


def _modules(roots: Sequence[ModuleUsage]) -> list[dict[str, Any]]:
    """Every module, each after the one that it is part of, by which its name begins."""
    names = [each.name for each in fields(ModuleUsage) if each.name not in ("phases", "children", "output_shape")]
    return [
        {
            **{name: getattr(each, name) for name in names},
            "output_shape": list(each.output_shape),
            "phases": [{**asdict(phase), "phase": phase.phase.name} for phase in each.phases],
        }
        for root in roots
        for each in root.walk()
    ]


def _advice(result: MemoryResult, moment: Moment) -> list[dict[str, Any]]:
    if not len(result.tape.events):
        return []
    return [each.to_record() for each in advise(result, moment)]
