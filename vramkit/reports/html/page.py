"""A result's page. Knows which scripts draw it; the data are ``payload``'s, the file is ``shell``'s."""

from __future__ import annotations

from collections.abc import Sequence

from ...tape.memory import MemoryResult
from .beside import Beside
from .payload import payload
from .prediction import Prediction
from .shell import whole
from .tabs import Tabs

_SCRIPTS = (
    "words", "frame", "data", "strip", "timeline", "bridge", "modules", "segments", "tensors", "lines", "curve",
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

    Args:
        result: with all its devices.
        text: its report as text, which is at the page's end.
        prediction: what an estimate has besides.
        beside: another result's figures of each device; empty: there is none.
        tabs: what there is a tab for; None: each device of the result.
    """
    header, columns = payload(result, prediction, beside, tabs)
    return whole("page", ["uplot"], _SCRIPTS, text, columns.packed(header))
