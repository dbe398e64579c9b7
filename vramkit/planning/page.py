"""A plan as a web page. Knows what it shows, as values for JSON; ``reports.html`` makes a file of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import printable
from ..reports.html.columns import Columns
from ..reports.html.shell import whole
from .text import Shown, report, verdict
from .variant import EFFECTS, Variant

_SCRIPTS = ("words", "frame", "scatter", "plan")
_ORDER = [*EFFECTS.values()]


def page(plan: Shown) -> str:
    """The whole page; it works offline."""
    return whole("plan", [], _SCRIPTS, report(plan), Columns().packed(payload(plan)))


def payload(plan: Shown) -> Mapping[str, Any]:
    """Everything that the page shows. Bytes are numbers; ``effect`` is a place in ``effects``. Places in ``variants``
    are ``cheapest``, ``shown``, whose code is open at first, and ``order``: all, from the least costly on.
    """
    rows, best = list(plan.variants), plan.cheapest
    card = plan.gpu.product or plan.gpu.name
    facts = [f"batch size {plan.batch_size:,}" if plan.batch_size else "", f"{plan.engine} engine"]
    return {
        "title": printable(f"Ways to fit {card}"),
        "facts": [*filter(None, facts), *(printable(f"{tool} {version}") for tool, version in plan.versions.items())],
        "card": printable(card),
        "room": plan.gpu.memory - plan.gpu.context,
        "effects": _ORDER,
        "cheapest": None if best is None else rows.index(best),
        "shown": rows.index(best or plan.closest),
        "order": sorted(range(len(rows)), key=lambda place: (rows[place].cost, rows[place].peak_reserved)),
        "verdict": [printable(sentence) for sentence in verdict(plan)],
        "variants": [{**_row(each), "largest": plan.largest(each), "on_front": each in plan.front} for each in rows],
        "left_out": [{"name": printable(each.name), "reason": _one_line(each.reason)} for each in plan.left_out],
        "notes": [_one_line(each) for each in plan.notes],
    }


def _row(each: Variant) -> dict[str, Any]:
    return {
        "name": printable(each.name),
        "reserved": each.peak_reserved,
        "allocated": each.peak_allocated,
        "fits": each.fits,
        "operations": each.operations,
        "transferred": each.transferred,
        "effect": _ORDER.index(each.effect),
        "numbers": [printable(text) for text in dict.fromkeys(each.numbers) if text != "none"],
        "code": "\n".join(map(printable, each.code.splitlines())),
    }


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))
