"""What every result that people read has: a report, and a file. Knows which readers there are; reads nothing itself."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

from ..comparison.result import Comparison, compare
from ..comparison.text import subject, words
from ..exports.frame import frame
from ..exports.memory_viz import write_memory_viz
from ..exports.notebook import fragment
from ..exports.perfetto import write_perfetto
from ..exports.plot import image, plot
from ..reports.html.beside import Beside
from ..reports.html.page import page
from ..reports.html.prediction import Prediction
from ..reports.html.tabs import Tabs
from ..reports.text import report
from ..tape.memory import MemoryResult
from .archive import save
from .document import document, metrics
from .files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


class ReadableResult(MemoryResult):
    """A result that shows itself, and that a file keeps."""

    origin: ClassVar[str] = "measured"
    """How its figures came about: "measured" or "predicted"."""

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

    def to_html(self, path: str | PathLike[str], *, beside: ReadableResult | None = None) -> None:
        """Write everything as one web page: memory over time, and of each moment the modules, segments and tensors.

        ::

            profile.to_html("report.html")
            profile.to_html("report.html", beside=estimate)

        The page is one file that loads nothing from anywhere, and runs on any browser since 2023. It has every moment
        of up to 250,000; of a longer recording so many that no category's peak is missing.

        Args:
            path: of the file; ``.html`` is usual. An existing file is replaced.
            beside: another result, whose figures are shown beside this one's: the estimate of what was measured, or an
                earlier profile.

        Raises:
            OSError: it can't be written.
            UsageError: what is given beside it is no result.
        """
        write_page(self, path, self.report(), beside=beside)

    def to_perfetto(self, path: str | PathLike[str]) -> None:
        """Write a trace that https://ui.perfetto.dev and chrome://tracing open.

        It has counters in bytes (each category, allocated, reserved) and slices for steps, phases and modules. Its time
        is the recording's; where that has none, the number of the event: ``otherData`` in the file says which. Of more
        than 100,000 moments those stay that are some counter's highest of their neighbours.

        Args:
            path: of the file; ``.json`` is usual. An existing file is replaced.

        Raises:
            OSError: it can't be written.
        """
        with replacing(path) as file:
            write_perfetto(self, file)

    def to_memory_viz(self, path: str | PathLike[str]) -> None:
        """Write a snapshot as torch's own, which https://pytorch.org/memory_viz and ``torch.cuda._memory_viz`` open.

        Each allocation has its category, and as the text beside it its name or module, and the phase that made it.
        Below the category stands its stack; where none was recorded, the modules that it belongs to.

        Args:
            path: of the file; ``.pickle`` is usual. An existing file is replaced.

        Raises:
            OSError: it can't be written.
        """
        with replacing(path) as file:
            write_memory_viz(self, file)

    def to_frame(self) -> DataFrame:
        """Every allocation of this device as a row of a pandas table, in order of birth.

        ::

            table = profile.to_frame()
            table.groupby("category", observed=True)["requested"].max()

        Columns: ``category``, ``phase``, ``module``, ``name``, ``step`` (from 0), ``requested`` and ``block`` in bytes,
        ``born`` and ``died`` as events (born -1: before the first), ``allocated_at`` and ``freed_at`` in microseconds,
        ``stream``, ``line`` (``"train.py:42 in forward"``, of ``profile(..., stacks=True)``), ``operator``
        (``"aten::mm (MmBackward0)"``). What is not known, or was alive at the end, is missing (NA).

        Raises:
            UsageError: pandas is not installed; ``vramkit[pandas]`` brings it.
        """
        return frame(self)

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """A figure of matplotlib: memory over time by category, the reserved line, and the sum at the peak.

        Each device has a row. The figure belongs to no window; ``savefig`` writes it.

        Args:
            path: a file to write it to as well; its ending says the kind, ``.png`` or ``.svg``.

        Raises:
            UsageError: matplotlib is not installed (``vramkit[plot]`` brings it), or writes no such files.
            OSError: the file can't be written.
        """
        figure = plot(self)
        if path is not None:
            content = image(figure, path)
            with replacing(path) as file:
                file.write(content)
        return figure

    def _repr_html_(self) -> str:
        """What a notebook shows: a static picture, the sum at the peak, and the report; no scripts."""
        return fragment(self, self.report())

    def __str__(self) -> str:
        return self.report()


def write_page(
    result: ReadableResult,
    path: str | PathLike[str],
    text: str,
    *,
    prediction: Prediction | None = None,
    beside: ReadableResult | None = None,
    tabs: Tabs | None = None,
) -> None:
    """Write a result as a web page; see `ReadableResult.to_html`.

    Args:
        result: with all its devices.
        path: of the file.
        text: the result's report.
        prediction: what an estimate has besides.
        beside: another result to show beside it.
        tabs: what there is a tab for; None: each of its devices.
    """
    shown: list[Beside] = []
    if beside is not None:
        comparison = compare(beside, result)
        heads = (beside.origin, result.origin) if beside.origin != result.origin else ("before", "after")
        by_device = {id(each.after): each for each in comparison.each_device()}
        shown = [_beside(by_device[id(each)], heads) for each in result.each_device()]
        text = f"{comparison.report()}\n\n\n{text}"
    content = page(result, text, prediction, shown, tabs).encode()
    with replacing(path) as file:
        file.write(content)


def _beside(comparison: Comparison, heads: tuple[str, str]) -> Beside:
    return Beside(
        heads=heads,
        subjects=(subject(comparison.before), subject(comparison.after)),
        rows=_rows(comparison),
        reasons=comparison.reasons,
    )


def _rows(comparison: Comparison) -> list[tuple[str, int, int]]:
    parts = [(words(each.name), each) for each in comparison.categories if each.before or each.after]
    peaks = (("most allocated", comparison.peak_allocated), ("most reserved", comparison.peak_reserved))
    return [(name, each.before, each.after) for name, each in (*parts, *peaks)]
