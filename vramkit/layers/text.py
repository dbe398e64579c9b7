"""The layer table as text and as a notebook shows it. Knows cells and sentences; looks up no figure of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..reports.layout import WIDTH, cut, sections
from ..reports.tree import shown_name
from .cells import HEADINGS, LAYER, ShownRow

_ALWAYS = ("output shape", "parameters")
_LEAST = 20  # characters for a layer's name
_CELL = "text-align:right;white-space:nowrap;padding:1px 8px"


def text(title: str, rows: Sequence[ShownRow], sentences: Sequence[str]) -> str:
    """The table in lines of at most 100 characters, as far as its figures leave room for names."""
    columns = _columns(rows)
    widths = [max(len(HEADINGS[column]), *(len(row.cells[column]) for row in rows)) for column in columns]
    room = max(_LEAST, WIDTH - sum(widths) - len(widths) - 1)
    names = [_name(row, room) for row in rows]
    first = max(map(len, (LAYER, *names)))
    lines = [_line(LAYER, first, [HEADINGS[column] for column in columns], widths)]
    lines += [
        _line(name, first, [row.cells[column] for column in columns], widths)
        for name, row in zip(names, rows, strict=True)
    ]
    return sections([[cut(title)], lines, sentences])


def _name(row: ShownRow, room: int) -> str:
    """A layer's name, indented, with its class if that has room."""
    indent = "  " * min(row.depth, room // 4)
    for more in (f"{row.count} {row.kind}".strip(), row.count):
        whole = f"{indent}{row.name} ({more})" if more else indent + row.name
        if len(whole) <= room:
            return whole
    return indent + shown_name(row.name, room - len(indent))


def _line(name: str, room: int, cells: Sequence[str], widths: Sequence[int]) -> str:
    shape, *others = cells
    figures = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
    return " ".join([f"{name:<{room}} ", f"{shape:<{widths[0]}}", *figures])


def _columns(rows: Sequence[ShownRow]) -> list[int]:
    """The columns that say something: gradients, for instance, are there only where something trains."""
    found = [{row.cells[column] for row in rows} for column in range(len(HEADINGS))]
    silent = [
        cells <= ({"-", "1"} if heading == "calls" else {"-"}) for heading, cells in zip(HEADINGS, found, strict=True)
    ]
    return [column for column, heading in enumerate(HEADINGS) if heading in _ALWAYS or not silent[column]]


def fragment(title: str, rows: Sequence[ShownRow], sentences: Sequence[str]) -> str:
    """The table as a piece of HTML without scripts."""
    columns = _columns(rows)
    head = "".join(
        f'<th style="{_CELL}">{escape(heading)}</th>' for heading in (LAYER, *(HEADINGS[column] for column in columns))
    )
    body = "".join(
        f'<tr><td style="text-align:left;padding:1px 8px 1px {0.6 + row.depth}em">{escape(row.name)} '
        f'<span style="opacity:0.7">{escape(f"{row.count} {row.kind}".strip())}</span></td>'
        + "".join(f'<td style="{_CELL}">{escape(row.cells[column])}</td>' for column in columns)
        + "</tr>"
        for row in rows
    )
    return (
        f'<div style="font-family:sans-serif;font-size:13px"><p><b>{escape(title)}</b></p>'
        f'<table style="font-variant-numeric:tabular-nums"><tr>{head}</tr>{body}</table>'
        + "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
        + "</div>"
    )
