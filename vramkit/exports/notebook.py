"""A result as a notebook shows it: a picture and a table without scripts. Knows HTML and SVG; every name is escaped."""

from __future__ import annotations

from html import escape

import numpy as np

from ..errors import printable
from ..reports.moment import moment_of
from ..reports.sentences import at_most, when
from ..sizes import format_size
from ..tape.events import Ints
from ..tape.memory import MemoryResult
from .pictures import RESERVED, Picture, bridge, picture

_MAX_MOMENTS = 600
_MAX_DEVICES = 8
_MAX_STEPS = 40
_WIDTH, _HEIGHT = 720, 200  # of the drawing, in its own units
_CELL = "text-align:right;padding:1px 12px;font-variant-numeric:tabular-nums"


def fragment(result: MemoryResult, report: str) -> str:
    """A piece of HTML: for each device memory over time and the sum at the peak.

    Args:
        result: with all its devices.
        report: as text, which is below, folded.
    """
    devices = list(result.each_device())
    parts = [_device(each) for each in devices[:_MAX_DEVICES]]
    text = f"<details><summary>Report</summary><pre>{escape(report)}</pre></details>"
    return f'<div style="font-family:sans-serif;font-size:13px">{"".join(parts)}{text}</div>'


def _device(result: MemoryResult) -> str:
    name = f"{result.device} ({printable(result.device_name)})" if result.device_name else result.device
    allocated, reserved = format_size(result.peak_allocated), format_size(result.peak_reserved)
    moment = "that is known" if result.is_moment else when(result, moment_of(result))
    head = (
        f"<p><b>{escape(name)}</b>: {at_most(result)}{allocated} allocated, {reserved} reserved. "
        f"The table is of the moment {escape(moment)}.</p>"
    )
    return head + _drawing(result) + _table(result)


def _table(result: MemoryResult) -> str:
    """The bridge: as in the text report, at the same moment."""
    held = moment_of(result).breakdown
    on_cpu = result.device == "cpu"
    parts = bridge(held, on_cpu=on_cpu)
    above = ("cached", "graph pools", "CUDA context, others")
    rows = [_row(name, size, color) for name, color, size in parts if name not in above]
    rows.append(_row("= held by tensors" if on_cpu else "= allocated", held.allocated))
    if not on_cpu:
        rows.append(_row("cached", held.cached))
        rows += [_row("graph pools", held.graph_pools)] * bool(held.graph_pools)
        rows.append(_row("= reserved", held.reserved))
    if held.outside:
        rows += [_row("CUDA context, others", held.outside), _row("= used on the device", held.used)]
    return f'<table style="border-collapse:collapse">{"".join(rows)}</table>'


def _row(name: str, size: int, color: str = "") -> str:
    mark = f'<span style="color:{color}">&#9632;</span> ' if color else ""
    label = f'<td style="text-align:left">{mark}{escape(name)}</td>'
    return f'<tr>{label}<td style="{_CELL}">{format_size(size)}</td><td style="{_CELL}">{size:,} B</td></tr>'


def _drawing(result: MemoryResult) -> str:
    shown = picture(result, _MAX_MOMENTS)
    highest = max(1, int(shown.reserved.max()), result.peak_allocated)
    across = shown.rows * _WIDTH / max(1, int(shown.rows[-1]))
    shapes = []
    below = np.zeros(len(shown.rows), np.int64)
    for layer in shown.layers:
        above = below + layer.sizes
        outline = _steps(across, above, highest) + _steps(across, below, highest)[::-1]
        shapes.append(
            f'<polygon fill="{layer.color}" points="{" ".join(outline)}"><title>{layer.name}</title></polygon>'
        )
        below = above
    if result.device != "cpu":
        line = " ".join(_steps(across, shown.reserved, highest))
        shapes.append(f'<polyline fill="none" stroke="{RESERVED}" points="{line}"><title>reserved</title></polyline>')
    shapes += _marks(shown)
    shapes.append(f'<text x="4" y="14" font-size="11" fill="{RESERVED}">{format_size(highest)}</text>')
    style = f'width="{_WIDTH}" style="max-width:100%;background:#fff"'
    label = f"<title>Memory of {escape(result.device)} over its events, up to {format_size(highest)}</title>"
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" {style} role="img">{label}{"".join(shapes)}</svg>'


def _marks(shown: Picture) -> list[str]:
    """A line where each step begins, and where an allocation failed."""
    end = max(1, int(shown.rows[-1]))
    lines = [(row, "#5d6673", f"step {number + 1}") for row, number in shown.steps[:_MAX_STEPS]]
    lines += [(row, "#b3121d", "an allocation failed") for row in shown.failures[-_MAX_STEPS:].tolist()]
    return [
        f'<line x1="{row * _WIDTH / end:.1f}" x2="{row * _WIDTH / end:.1f}" y1="0" y2="{_HEIGHT}" stroke="{color}" '
        f'stroke-width="0.6" stroke-dasharray="3 3"><title>{title}</title></line>'
        for row, color, title in lines
    ]


def _steps(across: np.ndarray[tuple[int], np.dtype[np.float64]], sizes: Ints, highest: int) -> list[str]:
    """The corners of a line that goes up and down in steps: each size lasts until the next moment."""
    x = np.repeat(across, 2)[1:].tolist()
    y = (_HEIGHT - np.repeat(sizes, 2)[:-1] * (_HEIGHT / highest)).tolist()
    return [f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True)]
