"""What every result that people read has: a report, and a file. Knows which readers there are; reads nothing itself."""

from __future__ import annotations

from os import PathLike

from ..reports.html.page import page
from ..reports.html.prediction import Prediction
from ..reports.text import report
from ..tape.memory import MemoryResult
from .archive import save
from .files import replacing


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

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write everything as one web page: memory over time, and of each moment the modules, segments and tensors.

        ::

            profile.to_html("report.html")

        The page is one file that loads nothing from anywhere, and runs on any browser since 2023. It has every moment
        of up to 250,000; of a longer recording so many that no category's peak is missing.

        Args:
            path: of the file; ``.html`` is usual. An existing file is replaced.

        Raises:
            OSError: it can't be written.
        """
        write_page(self, path, self.report())

    def __str__(self) -> str:
        return self.report()


def write_page(
    result: MemoryResult, path: str | PathLike[str], text: str, prediction: Prediction | None = None
) -> None:
    """Write a result as a web page; see `ReadableResult.to_html`.

    Args:
        result: with all its devices.
        path: of the file.
        text: the result's report.
        prediction: what an estimate has besides.
    """
    content = page(result, text, prediction).encode()
    with replacing(path) as file:
        file.write(content)
