"""Figures that others measured on real GPUs, beside what their programs say on the virtual ones.

    python -m benchmarks.published [--only NAME ...] [--python INTERPRETER] [--write docs/published-figures.md]

Each program runs in a process of its own. Returns 1 if one failed, or differs where no reason is written down.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
from pathlib import Path

import numpy as np

from .figures import FIGURES
from .running import Row, say

_HEAD = """\
# Published figures

Figures that others measured on real GPUs and published, beside what the same program says on the virtual twin of the
card. The programs are written anew from what their sources say of them (`benchmarks/published/`). This page is written
by

```console
python -m benchmarks.published --write docs/published-figures.md
```

The last run: {when}; torch {torch}. **{equal} of {all} are equal to every digit that was published, and {near} are
within 1 %**; most were measured with another torch. Where NVML was read, CUDA's context and what the driver keeps are
in the figure, and are assumed here."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="programs that have this in their call")
    parser.add_argument("--python", default=sys.executable, help="another interpreter, with another torch")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the page")
    options = parser.parse_args()
    rows = []
    for figure in FIGURES:
        if any(part in figure.call for part in options.only):
            rows.append(say(figure, python=options.python))
            print(" | ".join((figure.source.name, *_cells(rows[-1]))), flush=True)
    print(f"{sum(row.equal for row in rows)} of {len(rows)} equal")
    if options.write:
        version = "from importlib.metadata import version; print(version('torch'))"
        torch = subprocess.run([options.python, "-c", version], capture_output=True, text=True, check=True).stdout
        options.write.write_text(page(rows, torch=torch.strip()), encoding="utf-8")
    return int(any(row.bytes is None or not (row.equal or row.figure.why) for row in rows))


def page(rows: list[Row], *, torch: str) -> str:
    """The page."""
    today = datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()
    equal = sum(row.equal for row in rows)
    near = sum(row.bytes is not None and abs(row.difference) <= 0.01 for row in rows)
    lines = [_HEAD.format(when=today, torch=torch, equal=equal, near=near, all=len(rows))]
    for source in dict.fromkeys(row.figure.source for row in rows):
        lines += ["", f"## {source.name}", "", f"{source.where}, measured on {source.card} with torch {source.torch}:"]
        lines += [f"`{source.what}`", "", "| program | published | here | |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(_cells(row))} |" for row in rows if row.figure.source == source]
    return "\n".join([*lines, ""])


def _cells(row: Row) -> tuple[str, str, str, str]:
    figure, source = row.figure, row.figure.source
    if row.bytes is None:
        return figure.program, f"{figure.value} {source.unit}", "failed", row.failure
    ours = row.bytes / source.size
    shown = f"{ours:.{source.digits}f}" if source.digits is not None else f"{float(np.float32(ours))!r}"
    verdict = "equal" if row.equal else f"{row.difference:+.2%}: {figure.why or 'no reason is known'}"
    return figure.program, f"{figure.value!r} {source.unit}", f"{shown} {source.unit}", verdict


if __name__ == "__main__":
    sys.exit(main())
