"""A result's page: the assets and the data as one file. Knows which parts a page has; the data are ``payload``'s."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files

from ...tape.memory import MemoryResult
from .beside import Beside
from .payload import payload
from .prediction import Prediction
from .tabs import Tabs

_LIBRARY = "uplot.js"
_SCRIPTS = (
    "words", "data", "strip", "timeline", "bridge", "modules", "segments", "tensors", "lines", "curve",
    "beside", "page",
)  # fmt: skip
"""In the order in which one needs another; they are one script in the page."""


def page(
    result: MemoryResult,
    text: str,
    prediction: Prediction | None = None,
    beside: Sequence[Beside] = (),
    tabs: Tabs | None = None,
) -> str:
    """A web page that shows a result, and loads nothing from anywhere.

    No name of the result's becomes a part of the page's own text: they are inside of the data, and the page's script
    puts them into text nodes only. Its policy lets nothing run but its own two scripts, by their hashes.

    Args:
        result: with all its devices.
        text: its report as text, which is at the page's end.
        prediction: what an estimate has besides.
        beside: another result's figures of each device; empty: there is none.
        tabs: what there is a tab for; None: each device of the result.
    """
    header, columns = payload(result, prediction, beside, tabs)
    scripts = [_asset(_LIBRARY), "\n".join(_asset(f"{name}.js") for name in _SCRIPTS)]
    style = _asset("uplot.css") + _asset("page.css")
    policy = f"default-src 'none'; img-src data:; script-src {_allowed(scripts)}; style-src {_allowed([style])}"
    parts = {
        "policy": policy,
        "style": f"<style>{style}</style>",
        "text": html.escape(text),
        "data": f'<script type="application/octet-stream" id="data">{columns.packed(header)}</script>',
        "scripts": "".join(f"<script>{script}</script>" for script in scripts),
    }
    pieces = _asset("page.html").split("%%")  # text, name of a part, text, ...
    return "".join(parts[piece] if number % 2 else piece for number, piece in enumerate(pieces))


def _allowed(texts: list[str]) -> str:
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    return " ".join(f"'sha256-{each}'" for each in hashes)


@lru_cache
def _asset(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")
