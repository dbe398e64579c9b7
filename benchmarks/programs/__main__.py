"""Published training programs under ``vramkit run``: which run, and whether their labels are right.

    python -m benchmarks.programs SOURCES [--only NAME ...] [--write docs/programs.md]

SOURCES is a folder of git clones; nothing in it is changed, and what is missing is told with the command that gets it.
Each program runs in a process of its own, on stand-ins for its data. Prints a line for each. A program whose packages
are not installed fails.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
from pathlib import Path

from . import table
from .catalogue import PROGRAMS
from .running import Row, run


def main() -> int:
    """Run them. Returns 1 if one failed, or was labelled otherwise than its objects say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.programs", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sources", type=Path, help="a folder of git clones")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="NAME", help="programs whose names have this in them"
    )
    parser.add_argument("--gpu", default="a100-40gb", help="as for vramkit run (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=600, metavar="S", help="seconds for each (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="where they run and what they said is kept (default: nowhere)")
    parser.add_argument("--keep", action="store_true", help="run only what has not run yet in the folder of --work")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the page")
    options = parser.parse_args()
    chosen = [each for each in PROGRAMS if any(part in each.name for part in options.only)]
    with tempfile.TemporaryDirectory() as nowhere:
        work = options.work or Path(nowhere)
        rows = []
        for program in chosen:
            row = run(
                program,
                found=options.sources,
                work=work.resolve(),
                gpu=options.gpu,
                limit=options.limit,
                keep=options.keep,
            )
            rows.append(row)
            _tell(row)
    if options.write:
        today = datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()
        options.write.write_text(table.page(rows, gpu=options.gpu, when=today), encoding="utf-8")
    return int(any(row.failure or row.differences for row in rows))


def _tell(row: Row) -> None:
    print(f"{row.program.name}: {row.failure or 'ran'}, {row.seconds:.0f} s, other {row.other:.2%}", flush=True)
    for each in (*row.differences, *row.notes):
        print(f"  {each}", flush=True)


sys.exit(main())
