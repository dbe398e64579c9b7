"""How fast traces are followed and tapes are replayed, against the minimum that any reader of them must do.

Run it as a script: ``python benchmarks/bench_allocator.py``. It prints events per second on the recordings of real
GPUs, and how many times as long as one pass of a Python loop over the same events each job took in the same run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "allocator"))

import allocator_recordings as recordings
import numpy as np
from test_recordings import tape_of

from vramkit.allocator import CachingAllocator, follow, initial_state

MIN_EVENTS = 3_000
REPEATS = 5


def best(job: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return min(times)


def loop(columns: tuple[object, ...]) -> int:
    """The yardstick: touch every event once in Python."""
    count = 0
    for action, _, size, _ in zip(*(np.asarray(column).tolist() for column in columns), strict=True):
        if action == 0:
            count += size
    return count


def main() -> None:
    """Print a table."""
    jobs = ("replay", "follow", "initial_state")
    print(f"{'recording':32} {'events':>7}" + "".join(f" {job + '/s':>16} {'ratio':>6}" for job in jobs))
    for trace in recordings.all_traces():
        if len(trace.events) < MIN_EVENTS:
            continue
        tape = tape_of(trace)
        start = trace.start
        work = {
            "replay": lambda trace=trace, tape=tape: CachingAllocator(conf=trace.conf).replay(tape),
            "follow": lambda trace=trace, start=start: follow(start.segments, *trace.columns, trace.conf),
            "initial_state": lambda trace=trace: initial_state(trace.segments, *trace.columns, trace.conf),
        }
        yardstick = best(lambda trace=trace: loop(trace.columns))
        cells = ""
        for job in jobs:
            seconds = best(work[job])
            cells += f" {len(trace.events) / seconds:>16,.0f} {seconds / yardstick:>6.1f}"
        print(f"{trace.name:32} {len(trace.events):>7}{cells}")


if __name__ == "__main__":
    main()
