"""A page as one file: assets, data and a report as text. Knows which parts every page has, not what they show."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files


def whole(body: str, libraries: Sequence[str], scripts: Sequence[str], text: str, data: str) -> str:
    """A web page that loads nothing from anywhere.

    No name becomes a part of the page's own text: names are inside of the data, and the page's script puts them into
    text nodes only. Its policy lets nothing run but its own scripts, by their hashes.

    Args:
        body: name of the asset with what the page shows, and how to read it.
        libraries: names of scripts and styles that are other people's.
        scripts: names of those that draw the page, in the order in which one needs another; they are one script in it.
        text: the report as text, which is at the page's end.
        data: what `Columns.packed` made.
    """
    code = [*(_asset(f"{name}.js") for name in libraries), "\n".join(_asset(f"{name}.js") for name in scripts)]
    style = "".join(_asset(f"{name}.css") for name in (*libraries, "page"))
    shown, _, reading = _asset(f"{body}.html").partition("%%reading%%\n")
    parts = {
        "policy": (f"default-src 'none'; img-src data:; script-src {_allowed(code)}; style-src {_allowed([style])}"),
        "style": f"<style>{style}</style>",
        "body": shown,
        "reading": reading,
        "text": html.escape(text),
        "data": f'<script type="application/octet-stream" id="data">{data}</script>',
        "scripts": "".join(f"<script>{script}</script>" for script in code),
    }
    pieces = _asset("shell.html").split("%%")  # text, name of a part, text, ...
    return "".join(parts[piece] if number % 2 else piece for number, piece in enumerate(pieces))


def _allowed(texts: Sequence[str]) -> str:
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    return " ".join(f"'sha256-{each}'" for each in hashes)


@lru_cache
def _asset(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")
