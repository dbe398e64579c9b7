"""Every torch that is given: the allocator, predictions by both engines, and the verbs, in a table.

    python -m benchmarks.torches PYTHON [PYTHON ...] [--only PROGRAM ...] [--write docs/torches.md]

Each PYTHON is the interpreter of an environment with a CUDA build of torch, numpy, cloudpickle, typing-extensions and,
for the programs that need it, torchvision. Knows how to ask them; what is asked stands in ``checks.py`` and
``benchmarks/bench_estimate.py``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
VERBS = ("profile", "run", "auto_batch_size")
ENGINES = {"virtual": "virtual engine", "fake, CUDA": "fakes beside a device", "fake": "fakes without one"}


def ask(python: str, check: str) -> dict[str, Any]:
    """What a check says in an interpreter; what went wrong is an answer, too."""
    done = _run([python, "-m", "benchmarks.torches.checks", check])
    if "RESULT" not in done.stdout:
        return {"error": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.rsplit("RESULT", 1)[1])
    return found


def estimates(python: str, only: list[str]) -> dict[str, Any]:
    """What each engine says of each program, and what a fresh process took."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        done = _run([python, "benchmarks/bench_estimate.py", *only, "--columns", *ENGINES, "--json", str(file)])
        if not file.exists():
            return {"error": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]}
        found: dict[str, Any] = json.loads(file.read_text())
    return found


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True)


def row(python: str, only: list[str]) -> tuple[str, list[str]]:
    """One torch: its row of the table, and what is not equal, a line each."""
    about = ask(python, "about")
    if "error" in about:
        return f"| {python} | {about['error']} |" + " |" * 7, []
    name = f"torch {about['torch']}"
    cells, remarks = [name, about["python"], str(about["cudnn"]), about["ties"]], []
    served = ask(python, "allocator")
    cells.append(served.get("error") or f"{served['equal']} of {served['of']}")
    if served.get("differ"):
        remarks.append(f"{name}, allocator: programs {served['differ']} differ")
    found = estimates(python, only)
    for column, called in ENGINES.items():
        if "error" in found:
            cells.append("failed")
            continue
        off = []
        for program, measured in found["measured"].items():
            said = found["said"][program][column]
            if "error" in said:
                off.append(f"{name}, {called}, {program}: {said['error'].splitlines()[0][:150]}")
            elif [said["allocated"], said["reserved"]] != measured:
                parts = (said["allocated"] - measured[0], said["reserved"] - measured[1])
                off.append(f"{name}, {called}, {program}: allocated {parts[0]:+,} B, reserved {parts[1]:+,} B")
        cells.append(f"{len(found['measured']) - len(off)} of {len(found['measured'])}")
        remarks += off
    if "error" in found:
        remarks.append(f"{name}: {found['error']}")
    for verb in VERBS:
        said = ask(python, verb)
        problems = [said["error"]] if "error" in said else said["problems"]
        cells.append("failed" if problems else f"{said['size']:,} rows" if "size" in said else "equal")
        remarks += [f"{name}, {verb}: {each}" for each in problems]
    return f"| {' | '.join(cells)} |", remarks


HEAD = ("torch", "Python", "cuDNN", "ties", "allocator", *ENGINES.values(), *VERBS)


KNOWN = """\
Fakes differ in programs with convolutions alone, and there in nothing but cuDNN's workspaces, as the tape diff shows.
How large those are is cuDNN's own choice: the rules for fakes (`vramkit/engines/fake/kernels/cudnn_choices.py`) are
estimates of what cuDNN 9.2x chooses, which torch 2.14 has. 9.19 (torch 2.11) is as near; 9.10 (torch 2.8 and 2.9)
chooses other kernels for more layers. The virtual engine asks the cuDNN that is installed.

Since 2.15 cuBLAS's workspace is taken for each product, and given back after it; it is a temporary there. Of 2.15.0,
with Python 3.13, the allocator was held against 200 random programs, and one program's predictions against a fresh
process: equal.

What older ones cannot do, or do otherwise:

* Up to 2.10 the allocator's history does not say which thread an allocation was made in. A profile in which several
  threads train at once says so in a note; one thread, with its backward, is told exactly. Which module read a value
  that was not computed is not said.
* Up to 2.11 it does not name private pools, of a `MemPool` or a CUDA graph. Those of segments that are held before
  or after a profile are known all the same; of what came and went within it a note says that replays take it for
  the common pool's.
* Up to 2.9 torch refuses `per_process_memory_fraction`, `large_segment_size_mb` and other settings of newer
  allocators.
* On Hopper and Blackwell attention takes cuDNN's kernel with cuDNN 9.15.1 or newer, and flash attention's with
  older ones.
"""


def page(rows: list[str], remarks: list[str]) -> str:
    """The page with the table."""
    today = datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()
    lines = [
        "# Which torch",
        "",
        "The package asks for torch 2.8 or newer. All tests run with 2.14.1, and without CUDA with 2.13.0, before each",
        "change; a part of them with 2.8.0, the oldest. This table was made by",
        f"`python -m benchmarks.torches PYTHON ... --write docs/torches.md` on {today}, one interpreter for each",
        "torch, on the virtual GPU. *allocator*: random programs of which torch's own allocator and the simulator made",
        "the same events and blocks. *virtual engine* and *fakes*: programs of `tests/predicted_programs.py` of which",
        "the predicted peaks, allocated and reserved, are a fresh process's to the byte. *ties*: which of equally",
        "large free blocks is taken, the oldest segment's or the one with the lowest address.",
        "",
        f"| {' | '.join(HEAD)} |",
        f"|{'---|' * len(HEAD)}",
        *rows,
        "",
    ]
    if remarks:
        lines += ["What is not equal:", "", *(f"* {each}" for each in remarks), ""]
    lines.append(KNOWN)
    return "\n".join(lines)


def main() -> int:
    """Ask them all. Returns 1 if anything failed or differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torches", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pythons", nargs="+", metavar="PYTHON")
    parser.add_argument("--only", nargs="+", default=[], metavar="PROGRAM", help="default: all of them")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the page")
    options = parser.parse_args()
    rows, remarks = [], []
    for python in options.pythons:
        line, more = row(python, options.only)
        print(line, *more, sep="\n", flush=True)
        rows.append(line)
        remarks += more
    if options.write:
        options.write.write_text(page(rows, remarks), encoding="utf-8")
    return int(bool(remarks))


if __name__ == "__main__":
    sys.exit(main())
