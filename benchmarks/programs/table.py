"""What came of the programs, as a page of Markdown. Knows rows alone."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vramkit.sizes import format_size

from .running import Row

_HEAD = """\
# Programs

Training programs that others published, run as they are under `vramkit run --gpu {gpu}`: only their data, and what they
would fetch from a hub, are local stand-ins. This page is written by

```console
python -m benchmarks.programs SOURCES --write docs/programs.md
```

where `SOURCES` holds git clones of their repositories. The last run: {when}; torch {torch}, Python {python}.

* *Labels*: after some of the optimizer's steps and at the end, every module and optimizer that is alive is asked for
  its parameters, buffers, gradients and states. The profile has to call what lies at their addresses the same, and
  nothing else so. "equal (7)": at all of 7 moments.
* *Other*: the part of the peak that is of the category `OTHER`.
* *Seconds*: of the whole process, imports included, on two cores without a GPU.

| program | of | allocated at most | reserved at most | other | labels | seconds |
|---|---|---|---|---|---|---|
"""


def page(rows: Sequence[Row], *, gpu: str, when: str) -> str:
    """The page."""
    head = _HEAD.format(gpu=gpu, when=when, torch=version("torch"), python=platform.python_version())
    lines = [_line(row) for row in rows]
    arguments = [f"* {row.program.name}: `{_arguments(row)}`" for row in rows]
    return "\n".join((head + "\n".join(lines), "", *_unclear(rows), "## Arguments", "", *arguments, ""))


def _line(row: Row) -> str:
    if not row.peak_allocated:
        return f"| {row.program.name} | {_origin(row)} | {row.failure} | | | | {row.seconds:.0f} |"
    labels = "see below" if row.differences or row.failure else f"equal ({row.moments})"
    sizes = f"{format_size(row.peak_allocated)} | {format_size(row.peak_reserved)}"
    return f"| {row.program.name} | {_origin(row)} | {sizes} | {row.other:.2%} | {labels} | {row.seconds:.0f} |"


def _unclear(rows: Sequence[Row]) -> list[str]:
    """Failures, differences and notes of each program that has any."""
    lines = []
    for row in rows:
        said = [*[row.failure] * bool(row.failure and row.peak_allocated), *row.differences, *row.notes]
        if said:
            lines += [f"* {row.program.name}", *(f"  * {each}" for each in said)]
    return ["## What was said besides", "", *lines, ""] if lines else []


def _origin(row: Row) -> str:
    program = row.program
    if program.repository:
        return f"{program.repository}@{program.commit[:10]}"
    try:
        return f"{program.package} {version(program.package)}"
    except PackageNotFoundError:
        return program.package


def _arguments(row: Row) -> str:
    script, *more = (Path(each).name if Path(each).is_absolute() else each for each in row.program.run)
    return shlex.join((*row.program.options, script, *more))
