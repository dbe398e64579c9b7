"""A GPT of 65 billion parameters, predicted on a machine that has no memory for it: seconds and memory, side by side.

    python benchmarks/bench_large.py [--layers 80] [--only NAME ...]

80 layers of width 8192, 64 heads, sequences of 4096 tokens, batch 1, two steps with AdamW, the model on ``meta``. Each
column is a process of its own. Its seconds are those of the call, after torch was imported; the first call of the
virtual engine starts the helper process, which imports torch once more. The memory is the maximum that any one process
had resident from its start to the end of the call: of the virtual engine that is the user's own process, the helper,
the session that it forks, or the run that this one forks, each with the pages that it shares with the others; the fake
engine has the user's own alone. Their exit is left out: there CUDA's libraries touch up to 200 MB more of their own
pages, whoever imported torch. For scale, the last line is a process that only imports torch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests"
INTERVAL = 0.02
"""Seconds between two looks at the processes: what a run takes in its last moment may be missed."""

_MODEL = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
sys.path[:0] = [{tests!r}, {here!r}]
{before}
import torch
from bench_large import PeakMemory
from predicted_programs import class_loss
from workloads import GPT

def build():
    return GPT(layers={layers}, width=8192, heads=64, length=4096)

def report(seconds, memory, **figures):
    print("RESULT" + json.dumps(dict(seconds=seconds, memory=memory.peak, **figures)), flush=True)
"""

_ESTIMATE = """
import vramkit
with torch.device("meta"):
    model = build()
tokens = torch.zeros(1, 4096, dtype=torch.long)
for _ in range(2):
    with PeakMemory() as memory:
        start = time.perf_counter()
        found = vramkit.estimate(
            model,
            (tokens, tokens),
            optimizer=torch.optim.AdamW,
            loss=class_loss,
            steps=2,
            gpu="2 TiB",
            engine={engine!r},
        )
        seconds = time.perf_counter() - start
    report(seconds, memory, allocated=found.peak_allocated, reserved=found.peak_reserved)
"""

_MEMTRACKER = """
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
with PeakMemory() as memory:
    start = time.perf_counter()
    with FakeTensorMode():
        with torch.device("cuda"):
            model = build()
            tokens = torch.zeros(1, 4096, dtype=torch.long)
        optimizer = torch.optim.AdamW(model.parameters())
        tracker = MemTracker()
        tracker.track_external(model, optimizer)
        with tracker:
            for _ in range(2):
                class_loss(model(tokens), (tokens, tokens)).backward()
                optimizer.step()
                optimizer.zero_grad()
                tracker.reset_mod_stats()  # it refuses a second step without it
    peak = tracker.get_tracker_snapshot("peak")[torch.device("cuda", 0)]
    seconds = time.perf_counter() - start
report(seconds, memory, allocated=peak["Total"])
"""

_ACTIVATE = 'import vramkit.virtual_gpu\nvramkit.virtual_gpu.activate("2 TiB")'
COLUMNS = {
    "virtual engine": ("", _ESTIMATE.format(engine="virtual")),
    "fake engine": ("", _ESTIMATE.format(engine="fake")),
    "fake engine, CUDA": (_ACTIVATE, _ESTIMATE.format(engine="fake")),
    "MemTracker, fakes": (_ACTIVATE, _MEMTRACKER),
    "import torch": ("", "with PeakMemory() as memory:\n    pass\nreport(0, memory)"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=80, help="default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=COLUMNS, default=list(COLUMNS), metavar="NAME", help="columns")
    options = parser.parse_args()
    print(f"{'':28}{'seconds':>9}{'memory':>12}{'allocated':>22}{'reserved':>22}")
    for name in options.only:
        before, code = COLUMNS[name]
        frame = _MODEL.format(tests=str(TESTS), here=str(HERE), before=before, layers=options.layers)
        output = subprocess.run(
            [sys.executable, "-c", frame + code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ).stdout
        rows = [json.loads(line[6:]) for line in output.splitlines() if line.startswith("RESULT")]
        for number, row in enumerate(rows):
            sizes = [f"{row[key]:,} B" if key in row else "" for key in ("allocated", "reserved")]
            shown = name if not number else f"{name}, again"
            memory = f"{row['memory'] / 1e6:9,.0f} MB"
            print(f"{shown:28}{row['seconds']:8.1f} s{memory}{sizes[0]:>22}{sizes[1]:>22}", flush=True)
        if not rows:
            print(f"{name:28}failed: {output.strip().splitlines()[-1][:160]}", flush=True)


class PeakMemory:
    """Watches this process and all below it while a block runs, those too that begin and end meanwhile."""

    def __init__(self) -> None:
        self.peak = 0
        """The maximum that one of them has had resident since it began, bytes."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        self._look()
        while not self._over.wait(INTERVAL):
            self._look()
        self._look()

    def _look(self) -> None:
        found = [os.getpid()]
        for pid in found:
            with suppress(OSError):  # it has ended
                self.peak = max(self.peak, _peak(pid))
                for children in Path(f"/proc/{pid}/task").glob("*/children"):
                    found += map(int, children.read_text().split())


def _peak(pid: int) -> int:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return 1024 * int(lines.get("VmHWM", "0 kB").split()[0])


if __name__ == "__main__":
    main()
