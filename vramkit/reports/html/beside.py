"""What a page shows of another result beside its own, such as a prediction. Knows rows, and not where they are from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """The figures of one device in two results."""

    heads: tuple[str, str]
    """What the two are, the other one first: "predicted", "measured"."""
    subjects: tuple[str, str]
    """What was recorded, of both, in a line: the card, the steps, the version of torch."""
    rows: Sequence[tuple[str, int, int]]
    """What a figure is, by the page's words for it, and its bytes in both, the other one's first."""
    reasons: Sequence[str] = ()
    """Why they differ, in sentences."""

    def header(self) -> dict[str, object]:
        """As JSON can carry it."""
        return {
            "heads": list(self.heads),
            "subjects": [printable(subject) for subject in self.subjects],
            "rows": [list(row) for row in self.rows],
            "reasons": [" ".join(printable(reason).split()) for reason in self.reasons],
        }
