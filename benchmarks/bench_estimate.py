"""``vramkit.estimate`` held against fresh processes: bytes, equal or not, and what a prediction takes.

    python benchmarks/bench_estimate.py [--gpu NAME] [PROGRAM ...]

For each program the estimate is made here, where there is no CUDA device; then a new process, with a virtual one and
without vramkit.estimate or vramkit.profile, trains for three steps and prints torch's own peaks.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from predicted_programs import PROGRAMS
from subprocesses import run_on

import vramkit

_FRESH = """
import warnings
warnings.simplefilter("ignore")
from predicted_programs import PROGRAMS, run_as_users_do
result = run_as_users_do(PROGRAMS[{name!r}]())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help="default: all of them")
    parser.add_argument("--gpu", default="a100-80gb", help="default: %(default)s")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(
        f"torch {torch.__version__}, {options.gpu}, 3 steps; bytes of max_memory_allocated() and max_memory_reserved()"
    )
    print(f"{'program':30}{'allocated':>16}{'predicted':>16}{'reserved':>16}{'predicted':>16}{'':8}{'took':>9}")
    equal = 0
    names = options.programs or list(PROGRAMS)
    for name in names:
        program = PROGRAMS[name]()
        start = time.perf_counter()
        estimate = vramkit.estimate(**program, gpu=options.gpu)
        taken = time.perf_counter() - start
        allocated, reserved = run_on(options.gpu, _FRESH.format(name=name))
        same = (allocated, reserved) == (estimate.peak_allocated, estimate.peak_reserved)
        equal += same
        print(
            f"{name:30}{allocated:16,}{estimate.peak_allocated:16,}{reserved:16,}{estimate.peak_reserved:16,}"
            f"  {'equal' if same else 'DIFFER'}{taken:8.2f} s",
            flush=True,
        )
    print(f"{equal} of {len(names)} equal to the byte")


if __name__ == "__main__":
    main()
