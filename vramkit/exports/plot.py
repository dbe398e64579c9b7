"""A result as a figure of matplotlib: memory over time, and the bridge at the peak. Knows how it is drawn."""

from __future__ import annotations

import io
import math
import os
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError, printable
from ..reports.sentences import at_most, step_count
from ..sizes import format_size
from ..tape.memory import MemoryResult
from . import optional
from .pictures import CACHED, RESERVED, bridge, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ASKED = "A result was to be plotted"
_MAX_MOMENTS = 4_000
_MAX_STEPS = 40  # with a line of their own
_HEADROOM = 1.06
_TICKS = 5
_LABELLED = 0.02  # of the bar
_APART = 0.085  # labels of the bar, as part of its height
_NEAR = 1.5  # a card of so many times the highest memory is drawn; of a larger one nothing would be seen


def plot(result: MemoryResult) -> Figure:
    """A figure with a row for each device: memory over time by category, and beside it the sum at the peak."""
    figures = optional.load(_ASKED, "matplotlib.figure", "plot")
    devices = list(result.each_device())
    figure: Figure = figures.Figure(figsize=(11, 3.8 * len(devices)), layout="constrained")
    axes = figure.subplots(len(devices), 2, squeeze=False, width_ratios=(4, 1))
    for one, (left, right) in zip(devices, axes, strict=True):
        _over_time(one, left)
        _at_peak(one, right)
    return figure


def image(figure: Figure, path: str | os.PathLike[str]) -> bytes:
    """A figure as the content of a file, of the kind that the file's name ends in; PNG where it has no ending.

    Raises:
        UsageError: matplotlib writes no such files.
    """
    kind = os.path.splitext(os.fspath(path))[1][1:].lower() or "png"
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise UsageError(
            _ASKED,
            f"into a file that ends in {printable(kind)!r:.40}",
            "matplotlib writes no such files",
            f"Give it one of these endings: {', '.join(sorted(known))}",
        )
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=150)
    return content.getvalue()


def _over_time(result: MemoryResult, axes: Axes) -> None:
    shown = picture(result, _MAX_MOMENTS)
    if shown.layers:
        axes.stackplot(
            shown.rows,
            [layer.sizes for layer in shown.layers],
            colors=[layer.color for layer in shown.layers],
            labels=[layer.name for layer in shown.layers],
            step="post",
            linewidth=0,
        )
    highest = max(result.peak_reserved, 1)
    if result.device != "cpu":
        axes.step(shown.rows, shown.reserved, where="post", color=RESERVED, linewidth=1, label="reserved")
    if result.capacity and result.capacity <= _NEAR * (result.peak_reserved + result.outside):
        highest = max(result.capacity, result.peak_reserved + result.outside)
        axes.axhline(result.capacity, color="#b3121d", linestyle="--", linewidth=1, label="the card's memory")
    for row, number in shown.steps[:_MAX_STEPS]:
        axes.axvline(row, color="#dde1e7", linewidth=0.8, zorder=0)
        axes.annotate(f"{number + 1}", (row, 1), (2, -9), ("data", "axes fraction"), "offset points", fontsize=7)
    for row in shown.failures[-_MAX_STEPS:].tolist():
        axes.axvline(row, color="#b3121d", linewidth=1.2)
    axes.set_xlim(0, max(1, int(shown.rows[-1])))
    axes.set_ylim(0, highest * _HEADROOM)
    axes.set_yticks(np.arange(0, highest * _HEADROOM, 1 << max(0, math.ceil(math.log2(highest / _TICKS)))))
    axes.yaxis.set_major_formatter(lambda size, _: format_size(int(size)))
    axes.set_xlabel("allocator events; the numbers above are training steps" if shown.steps else "allocator events")
    axes.set_title(_title(result), loc="left", fontsize=10, parse_math=False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.14), ncols=6, fontsize=7, frameon=False)


def _at_peak(result: MemoryResult, axes: Axes) -> None:
    used = max(1, result.peak.used)
    bottom, free = 0, 0.0
    for name, color, size in bridge(result.peak, on_cpu=result.device == "cpu"):
        edge = "#aab3bf" if color == CACHED else None
        axes.bar(0, size, 0.5, bottom, color=color, edgecolor=edge, linewidth=0.6)
        if size > _LABELLED * used:
            place = max(bottom + size / 2, free)
            free = place + _APART * used
            axes.text(0.3, place, f"{name}\n{format_size(size)}", va="center", fontsize=7)
        bottom += size
    axes.set_xlim(-0.3, 1.5)
    axes.set_ylim(0, used * _HEADROOM)  # its own: beside a small program the CUDA context is large
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
    axes.set_title("when most was allocated", loc="left", fontsize=9)


def _title(result: MemoryResult) -> str:
    name = printable(result.device_name).encode("ascii", "backslashreplace").decode()  # its font may lack the rest
    steps = step_count(result)
    return (
        f"{result.device}{f' ({name:.60})' if name else ''}"
        f"{f', {steps} steps' if steps > 1 else ''}: {at_most(result)}{format_size(result.peak_allocated)} allocated, "
        f"{format_size(result.peak_reserved)} reserved"
    )
