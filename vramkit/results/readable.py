"""What every result that people read has: a report, and a file. Knows which readers there are; reads nothing itself."""

from __future__ import annotations

from os import PathLike
from typing import Any

from ..reports.text import report
from ..tape.memory import MemoryResult
from .archive import save
from .document import document, metrics


class ReadableResult(MemoryResult):
    """A result that shows itself, and that a file keeps."""

    def report(self) -> str:
        """One screen of text: the bridge, the categories at the peak, the modules, and what would help most."""
        return report(self)

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything to one file; `vramkit.load` opens it, on a machine without torch too.

        Args:
            path: of the file; ``.npz`` is usual. An existing file is replaced.
        """
        save(self, path)

    def metrics(self) -> dict[str, int]:
        """The figures as one flat dict, for a logger of experiments: bytes, and at its end some counts.

        ::

            wandb.log(profile.metrics())
        """
        return metrics(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single allocations, as JSON can carry it: what ``--json`` of the command line writes."""
        return document(self)

    def __str__(self) -> str:
        return self.report()
