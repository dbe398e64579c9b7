"""``vramkit.auto_batch_size`` and other finders of batch sizes against the truth: sizes, trials, failures, seconds.

    python benchmarks/bench_batch_size.py [--gpu NAME ...] [--finder TEXT ...] [PROGRAM ...]

The truth is the largest batch whose three steps run in a fresh process without an allocation that fails or succeeds
only when the cache was given back (thrashing), found by halving (``tests/fitted_programs.py``). Then each finder runs
in a process of its own, on the same virtual card. Lightning and accelerate take part where they are installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from batch_size_finders import FINDERS, PACKAGES
from fitted_programs import FITTED, STEPS
from subprocesses import run_on

_QUIET = """
import warnings, logging
warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
"""
_TRUTH = """
import torch
torch.set_num_threads(1)  # a fork has only the thread that forked: no pool may exist by then
from fitted_programs import FITTED, largest_that_runs
result = largest_that_runs(FITTED[{name!r}]())
"""
_OUTCOME = """
import torch
torch.set_num_threads(1)
from fitted_programs import FITTED, outcome
result = outcome(FITTED[{name!r}](), {size})
"""
_FIND = """
sys.path.insert(0, {here!r})
from batch_size_finders import find
result = find({finder!r}, {name!r})
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help="default: all of them")
    parser.add_argument("--gpu", nargs="+", default=["t4", "a100-40gb"], help="default: t4 a100-40gb")
    parser.add_argument("--finder", nargs="+", default=[""], metavar="TEXT", help="those whose name has it")
    options = parser.parse_args()
    unknown = set(options.programs) - set(FITTED)
    if unknown:
        parser.error(f"no program {', '.join(sorted(unknown))}; there are {', '.join(FITTED)}")
    finders = [name for name in FINDERS if any(text in name for text in options.finder)]
    versions = {package: _version(package) for package in PACKAGES.values()}
    for package, version in versions.items():
        if version is None:
            print(f"{package} is MISSING: its finders do not take part (pip install {package})")
    finders = [name for name in finders if versions.get(PACKAGES.get(name.split()[0].rstrip(","), ""), "") is not None]
    known = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
    print(f"torch {torch.__version__}{', ' * bool(known)}{known}; {STEPS} steps a trial")
    results: dict[str, list[tuple[int, dict[str, Any]]]] = {finder: [] for finder in finders}
    for gpu in options.gpu:
        for name in options.programs or FITTED:
            truth, processes = run_on(gpu, _QUIET + _TRUTH.format(name=name))
            print(f"\n{gpu}, {name}: {truth:,} rows ({processes} fresh processes)")
            for finder in finders:
                found = _found(gpu, finder, name, truth)
                if found is not None:
                    results[finder].append((truth, found))
                    print(f"  {finder:34}{_line(truth, found)}", flush=True)
    _summarise(results)


def _found(gpu: str, finder: str, name: str, truth: int) -> dict[str, Any] | None:
    """What a finder came to, and how a fresh process trains at that size."""
    try:
        found = run_on(gpu, _QUIET + _FIND.format(here=str(Path(__file__).parent), finder=finder, name=name))
    except AssertionError as error:
        print(f"  {finder:34}FAILED: {str(error).strip().splitlines()[-1]:.150}", flush=True)
        return None
    size = found["size"]
    found["outcome"] = "fits" if size <= truth else run_on(gpu, _OUTCOME.format(name=name, size=size))
    return found


def _line(truth: int, found: dict[str, Any]) -> str:
    size, trials, probes = found["size"], found["trials"], found["probes"]
    share = "equal" if size == truth else f"{size / truth:.1%}"
    counted = f"{probes} + {trials - probes}" if probes else f"{trials}"
    outcome = found["outcome"].upper() if found["outcome"] != "fits" else ""
    return (
        f"{size:10,}  {share:>7} {outcome:9}{counted:>7} trials{found['steps']:5} steps{found['ooms']:4} OOM"
        f"{found['seconds']:8.1f} s"
    )


def _summarise(results: dict[str, list[tuple[int, dict[str, Any]]]]) -> None:
    head = f"{'equal':>8}{'thrash':>8}{'run out':>9}{'lowest':>8}{'trials':>8}{'steps':>7}{'OOM':>6}{'seconds':>9}"
    print(f"\n{'':34}{head}")
    for finder, rows in results.items():
        if not rows:
            continue
        equal = sum(found["size"] == truth for truth, found in rows)
        thrash, fail = (sum(found["outcome"] == what for _, found in rows) for what in ("thrashes", "runs out"))
        lowest = min(found["size"] / truth for truth, found in rows)
        totals = [sum(found[key] for _, found in rows) for key in ("trials", "steps", "ooms")]
        seconds = sum(found["seconds"] for _, found in rows)
        print(
            f"{finder:34}{f'{equal}/{len(rows)}':>8}{thrash:8}{fail:9}{lowest:8.1%}"
            f"{totals[0]:8}{totals[1]:7}{totals[2]:6}{seconds:9.1f}"
        )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
