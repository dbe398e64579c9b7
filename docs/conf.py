"""How Sphinx builds these pages: `sphinx-build -W docs OUT`, with the extra `docs`. They read as well without it."""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

import vramkit

DOCS = Path(__file__).parent
ROOT = DOCS.parent
_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")

project = "vramkit"
author = "The vramkit developers"
copyright = author
version = release = vramkit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"vramkit {release}"
html_show_sourcelink = False
_NARROW = {"code-font-size": "72%"}  # a report is 100 characters wide
html_theme_options = {"light_css_variables": _NARROW, "dark_css_variables": _NARROW}

python_maximum_signature_line_length = 100

myst_heading_anchors = 3

default_role = "py:obj"  # in docstrings `Name` is a name of vramkit
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False


def _name_what_is_no_page(app: Sphinx, name: str, source: list[str]) -> None:
    """A link out of this folder, to a file of the package, becomes the text and the file's place in the repository."""
    here = (DOCS / f"{name}.md").parent

    def told(link: re.Match[str]) -> str:
        target = (here / link[2]).resolve()
        if target.is_relative_to(DOCS):
            return link[0]
        place = f"`{target.relative_to(ROOT)}`"
        return place if link[1].strip("`") in place else f"{link[1]} ({place})"

    source[0] = _LINK.sub(told, source[0])


def _list_every_other_page(app: Sphinx, name: str, source: list[str]) -> None:
    """A page in this folder that the index does not name stands where it says `every-other-page`."""
    if name == "index":
        named = source[0].splitlines()
        others = sorted(page.stem for page in DOCS.glob("*.md") if page.stem not in {*named, "index"})
        source[0] = source[0].replace("every-other-page", "\n".join(others))


def _keep_colons(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Napoleon takes what is before a colon in an attribute's first line for its type: so a comment comes first."""
    if what in {"attribute", "data", "property"}:
        lines[:0] = ["..", ""]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _keep_colons, priority=400)  # napoleon's is 500
    app.connect("source-read", _list_every_other_page)
    app.connect("source-read", _name_what_is_no_page)
