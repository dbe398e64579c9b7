"""What measuring costs a training step, as ratios to the step without it, taken side by side in one run.

    python benchmarks/bench_profile.py [--rounds N]

The step is dispatch-bound: a 12-layer GPT on the virtual GPU, whose kernels do nothing, so that every microsecond of
host code shows. On a real GPU the host is ahead of the device, and most of the cost is hidden. There only some forwards
are followed module by module; on a virtual GPU all are, which has a row of its own.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import vramkit.virtual_gpu

vramkit.virtual_gpu.activate("a100-80gb")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch  # noqa: E402 - the virtual GPU comes first
from torch.distributed._tools.mem_tracker import MemTracker  # noqa: E402
from workloads import GPT, Workload, tokens  # noqa: E402

import vramkit  # noqa: E402

workload = Workload(GPT(), tokens(8, 1024))


@contextmanager
def history() -> Iterator[None]:
    torch.cuda.memory._record_memory_history(context=None, max_entries=1_000_000)
    try:
        yield
    finally:
        torch.cuda.memory._record_memory_history(None)


@contextmanager
def mem_tracker() -> Iterator[None]:
    tracker = MemTracker()
    tracker.track_external(workload.model, workload.optimizer)
    with tracker:
        yield


@contextmanager
def profile(*, follows_all: bool, stacks: bool = False) -> Iterator[None]:
    with patch("vramkit.profiling.cuda.current", return_value=object() if follows_all else None):
        prof = vramkit.profile(workload.model, workload.optimizer, stacks=stacks)
        with prof:
            yield


def ways() -> dict[str, Callable[[], object]]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    return {
        "nothing": nullcontext,
        "the allocator's history alone": history,
        "vramkit.profile": lambda: profile(follows_all=False),
        "vramkit.profile(stacks=True)": lambda: profile(follows_all=False, stacks=True),
        "vramkit.profile, all followed": lambda: profile(follows_all=True),
        "torch.profiler(profile_memory=True)": lambda: torch.profiler.profile(
            activities=activities, profile_memory=True, record_shapes=True
        ),
        "torch MemTracker": mem_tracker,
    }


def seconds(way: Callable[[], object], steps: int) -> tuple[list[float], float]:
    """Seconds of each step inside a way of measuring, and of leaving it."""
    taken = []
    gc.collect()
    with way():  # type: ignore[attr-defined]
        for _ in range(steps):
            start = time.perf_counter()
            workload.step()
            taken.append(time.perf_counter() - start)
        left = time.perf_counter()
    return taken, time.perf_counter() - left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12, help="how often each way gets its turn (default 12)")
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore")
    for _ in range(10):
        workload.step()
    taken: dict[str, list[float]] = {name: [] for name in ways()}
    left: dict[str, list[float]] = {name: [] for name in taken}
    ratios: dict[str, list[float]] = {name: [] for name in taken}
    for _ in range(rounds):
        for name, way in ways().items():
            # MemTracker takes one iteration; the others' first steps are in, as a user would have them.
            steps, leaving = seconds(way, 1 if name == "torch MemTracker" else 20)
            taken[name] += steps
            left[name].append(leaving)
            # To the steps of the same round: a machine that others use is slow for seconds at a time.
            ratios[name].append(statistics.median(steps) / statistics.median(taken["nothing"][-20:]))
    lowest = min(taken["nothing"])
    print(f"torch {torch.__version__}, 12-layer GPT, batch 8 x 1024, AdamW, {rounds} rounds of 20 steps")
    print(f"{'':38}{'median':>10}{'ratio':>8}{'lowest':>10}{'ratio':>8}{'leaving':>10}")
    for name, each in taken.items():
        median, low = statistics.median(each), min(each)
        ratio = statistics.median(ratios[name])
        leaving = statistics.median(left[name])
        print(
            f"{name:38}{median * 1e3:7.2f} ms{ratio:8.2f}{low * 1e3:7.2f} ms{low / lowest:8.2f}{leaving * 1e3:7.0f} ms"
        )


if __name__ == "__main__":
    main()
