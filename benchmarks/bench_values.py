"""What computing values costs a step: two processes, with and without, take turns.

    python benchmarks/bench_values.py [--rounds N] [--values small|all]

A 12-layer GPT of 768 (batch 8 x 1024, AdamW) on a virtual A100: a step that does next to nothing but dispatch, so that
every microsecond shows. Prints medians and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

STEPS = 20


def work(values: str) -> None:
    """Run so many steps whenever a line comes, and say how long a step took."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from vramkit import virtual_gpu

    virtual_gpu.activate("a100-80gb", values=values)  # type: ignore[arg-type] # checked there
    from workloads import GPT, Workload, tokens

    workload = Workload(GPT(), tokens(8, 1024))
    for _ in range(3):
        workload.step()
    for _ in sys.stdin:
        begin = time.perf_counter()
        for _ in range(STEPS):
            workload.step()
        print((time.perf_counter() - begin) / STEPS, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="how often each gets its turn (default: %(default)s)")
    parser.add_argument("--values", choices=("small", "all"), default="small", help="default: %(default)s")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker)
        return
    ways = ("none", options.values)
    workers = {
        way: subprocess.Popen(
            [sys.executable, __file__, "--worker", way], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for way in ways
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way, worker in workers.items():
            assert worker.stdin is not None
            assert worker.stdout is not None
            print(file=worker.stdin, flush=True)
            seconds[way].append(float(worker.stdout.readline()))
    for worker in workers.values():
        worker.communicate()
    without = seconds["none"]
    for way, found in seconds.items():
        ratio = statistics.median(each / base for each, base in zip(found, without, strict=True))
        print(
            f"values={way!r:8} median {statistics.median(found) * 1e3:8.2f} ms, lowest {min(found) * 1e3:8.2f} ms, "
            f"{ratio:.2f} of without (lowest {min(found) / min(without):.2f})"
        )


if __name__ == "__main__":
    main()
