"""That a result can be shown, whoever made the file that it comes from."""

from __future__ import annotations

import io
import json
import pickle
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

from vramkit import SnapshotError, compare
from vramkit.exports.memory_viz import write_memory_viz
from vramkit.exports.notebook import fragment
from vramkit.exports.perfetto import write_perfetto
from vramkit.reports.html.page import page
from vramkit.tape.memory import MemoryResult

ESCAPES = "\x1b[31mred\x07\n\u202e"
"""What a terminal acts on."""


def assert_can_be_shown(result: MemoryResult) -> None:
    """The reports, every ``repr`` and every table come to an end, and a terminal acts on nothing in them."""
    report = str(result)
    assert all(line.isprintable() for line in report.split("\n"))
    assert len(report) < 100_000
    assert page(result, report).endswith("</html>\n")
    assert_can_be_exported(result)
    for each in result.each_device():
        for shown in (each, each.tape, each.timeline, each.peak, each.final, *each.steps, *each.out_of_memory):
            assert repr(shown).isprintable()
            assert len(repr(shown)) < 20_000
        for root in each.by_module:
            assert all(repr(module).isprintable() for module in root.walk())
        assert json.loads(json.dumps(each.to_records())) == each.to_records()


def assert_can_be_exported(result: MemoryResult) -> None:
    """Every form in which a result leaves comes to an end, and is of its kind; and so does a comparison."""
    trace, snapshot = io.BytesIO(), io.BytesIO()
    write_perfetto(result, trace)
    write_memory_viz(result, snapshot)
    assert all(event["name"].isprintable() for event in json.loads(trace.getvalue())["traceEvents"])
    assert len(pickle.loads(snapshot.getvalue())["device_traces"]) >= len([*result.each_device()])
    ET.fromstring(fragment(result, ""))
    compared = compare(result, result).report()
    assert all(line.isprintable() for line in compared.split("\n"))
    assert len(compared) < 100_000


def assert_is_shown_or_refused(open_: Callable[[Path], MemoryResult], path: Path) -> None:
    """A file opens and can be shown, or ends in a short and printable `SnapshotError`, and in no other exception."""
    refusal = ""
    try:
        result = open_(path)
    except SnapshotError as error:
        refusal = str(error)
    else:
        assert_can_be_shown(result)
    assert refusal.isprintable()
    assert len(refusal) < 1000 + len(str(path))
