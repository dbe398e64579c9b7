"""The layer table as a reader sees it: equal layers as one row, each figure as text. Knows rows; draws nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..errors import printable
from ..reports.tree import shown_name
from ..sizes import format_size
from .rows import LayerRow

LAYER = "layer"
HEADINGS = (
    "output shape", "calls", "parameters", "mult-adds", "activations", "gradients", "state", "peak"
)  # fmt: skip
_NONE = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRow:
    """A row as it is shown."""

    depth: int
    name: str
    """The last part of the layer's name."""
    kind: str
    """Its class; empty: that is what the name says."""
    count: str
    """How many layers the row is, "12 x"; empty: one."""
    cells: tuple[str, ...]
    """By `HEADINGS`."""


@dataclass
class _Layer:
    """A row with those inside it, and how many neighbours are the same."""

    row: LayerRow
    local: str
    """The last part of its name."""
    inside: list[_Layer] = field(default_factory=list)
    last: str = ""
    """The local name of the last one that it stands for; empty: it stands for itself alone."""
    count: int = 1


def shown_rows(rows: Sequence[LayerRow], depth: int | None = None) -> list[ShownRow]:
    """The rows that are shown: neighbours in a list that are the same in everything but the peak are one row.

    Args:
        rows: outermost first.
        depth: leave out layers that are inside of more layers than this.
    """
    shown: list[ShownRow] = []
    pending = _merged(_nested(rows))[::-1]
    while pending:
        layer = pending.pop()
        shown.append(_shown(layer))
        if depth is None or layer.row.depth < depth:
            pending += reversed(layer.inside)
    return shown


def _nested(rows: Sequence[LayerRow]) -> list[_Layer]:
    roots: list[_Layer] = []
    above: list[_Layer] = []
    for row in rows:
        del above[row.depth :]
        layer = _Layer(row, row.name[len(above[-1].row.name) + 1 :] if above else row.name)
        (above[-1].inside if above else roots).append(layer)
        above.append(layer)
    return roots


def _merged(layers: list[_Layer]) -> list[_Layer]:
    found: list[_Layer] = []
    for layer in layers:
        layer.inside = _merged(layer.inside)
        before = found[-1] if found else None
        if before is not None and before.local.isdigit() and layer.local.isdigit() and _are_same(before, layer):
            _join(before, layer)
        else:
            found.append(layer)
    return found


def _are_same(one: _Layer, other: _Layer) -> bool:
    return (
        replace(one.row, name="", peak=0) == replace(other.row, name="", peak=0)
        and len(one.inside) == len(other.inside)
        and all(
            (a.count, a.last) == (b.count, b.last) and (a.local == b.local) and _are_same(a, b)
            for a, b in zip(one.inside, other.inside, strict=True)
        )
    )


def _join(one: _Layer, other: _Layer) -> None:
    one.row = replace(one.row, peak=max(one.row.peak, other.row.peak))
    for a, b in zip(one.inside, other.inside, strict=True):
        count, last = a.count, a.last
        _join(a, b)
        a.count, a.last = count, last
    one.last, one.count = other.local, one.count + 1


def _shown(layer: _Layer) -> ShownRow:
    row = layer.row
    sizes = (row.activations, row.gradients, row.optimizer_state, row.peak)
    cells = (
        "x".join(map(str, row.output_shape)) or _NONE,
        str(row.calls) if row.calls else _NONE,
        f"{row.parameters:,}" if row.parameters else _NONE,
        shown_count(row.multiply_adds) if row.multiply_adds else _NONE,
        *(format_size(size) if size else _NONE for size in sizes),
    )
    kind = "" if row.kind == layer.local else printable(row.kind)
    return ShownRow(
        depth=row.depth,
        name=shown_name(layer.local) + f" to {layer.last}" * bool(layer.last),
        kind=kind,
        count=f"{layer.count} x" if layer.last else "",
        cells=cells,
    )


def shown_count(count: int) -> str:
    """A large number with three digits: ``6.50 M``."""
    if count < 1000:
        return str(count)
    value = float(count)
    for unit in ("k", "M", "G", "T", "P"):
        value /= 1000
        if value < 999.5 or unit == "P":
            break
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
