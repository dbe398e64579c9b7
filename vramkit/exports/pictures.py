"""What the static pictures of a result share: colours, and the layers of its memory over time. Draws nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..reports.moments import boundaries, failures, shown_moments
from ..reports.sentences import CATEGORY_NAMES
from ..tape.breakdown import Breakdown
from ..tape.events import Category, Ints
from ..tape.memory import MemoryResult

COLORS = {
    Category.PARAMETER: "#2a5bcf",
    Category.BUFFER: "#33215c",
    Category.GRADIENT: "#c2330a",
    Category.OPTIMIZER_STATE: "#189560",
    Category.INPUT: "#f4dd6f",
    Category.ACTIVATION: "#52c3f2",
    Category.TEMPORARY: "#ea9414",
    Category.WORKSPACE: "#a74aa0",
    Category.OTHER: "#8f959c",
    Category.MODEL_COPY: "#6f4d5b",
    Category.DATASET: "#85c373",
    Category.OUTPUT: "#72211e",
}
"""Of each category, as in the web page; people who see few colours can tell them apart."""

SLACK, CACHED, POOLS, OUTSIDE, RESERVED = "#d6dbe2", "#eef1f5", "#aab3bf", "#59626f", "#1b2129"


@dataclass(frozen=True)
class Layer:
    """A part of the memory."""

    name: str
    color: str
    sizes: Ints
    """Bytes at each shown moment."""


@dataclass(frozen=True)
class Picture:
    """Memory over time, at so many moments that no part's peak is missing."""

    rows: Ints
    """Of the timeline, in order."""
    layers: list[Layer]
    """From the bottom up; together they are what is allocated."""
    reserved: Ints
    steps: list[tuple[int, int]]
    """The row with which each step begins, and its number, from 0."""
    failures: Ints
    """Rows at which an allocation failed."""


def picture(result: MemoryResult, limit: int) -> Picture:
    """What a picture of one device shows.

    Args:
        result: of the device.
        limit: moments, at most.
    """
    timeline, events = result.timeline, result.tape.events
    failed = failures(result)
    rows = shown_moments(result, limit, np.concatenate([failed, boundaries(result)]))
    columns = timeline.by_category
    layers = [
        Layer(CATEGORY_NAMES[each], COLORS[each], columns[rows, each]) for each in Category if columns[:, each].any()
    ]
    if (slack := timeline.slack).any():
        layers.append(Layer("rounding and slack", SLACK, slack[rows]))
    numbers, first = np.unique(events["step"], return_index=True)
    steps = sorted(zip((first + 1).tolist(), numbers.tolist(), strict=True))
    return Picture(rows, layers, timeline.reserved[rows], steps, failed)


def bridge(held: Breakdown, *, on_cpu: bool) -> list[tuple[str, str, int]]:
    """The parts of a breakdown that are not empty, from the bottom up: name, colour, bytes. They sum to ``used``."""
    parts = [(CATEGORY_NAMES[each], COLORS[each], held.of(each)) for each in Category]
    parts.append(("rounding" if on_cpu else "rounding and slack", SLACK, held.slack))
    parts += [("cached", CACHED, held.cached), ("graph pools", POOLS, held.graph_pools)]
    parts.append(("CUDA context, others", OUTSIDE, held.outside))
    return [part for part in parts if part[2]]
