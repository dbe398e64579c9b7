"""A GPT of 65 billion parameters, predicted on a machine that has no memory for it: seconds and memory, side by side.

    python benchmarks/bench_large.py [--layers 80] [--only NAME ...]

80 layers of width 8192, 64 heads, sequences of 4096 tokens, batch 1, two steps with AdamW, the model on ``meta``. Each
column is a process of its own. Its seconds are those of the call, after torch was imported; the first call of the
virtual engine starts the helper process, which imports torch once more. The memory is the peak that the larger of the
two processes has had when the call returns: at their exit CUDA's libraries touch up to 200 MB more of their own pages,
whoever imported torch. For scale, the last line is a process that only imports torch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests"

_MODEL = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
sys.path[:0] = [{tests!r}, {here!r}]
{before}
import torch
from predicted_programs import class_loss
from workloads import GPT

def build():
    return GPT(layers={layers}, width=8192, heads=64, length=4096)

def report(start, **figures):
    from bench_large import peak_memory
    seconds = time.perf_counter() - start
    print("RESULT" + json.dumps(dict(seconds=seconds, memory=peak_memory(), **figures)), flush=True)
"""

_ESTIMATE = """
import vramkit
with torch.device("meta"):
    model = build()
tokens = torch.zeros(1, 4096, dtype=torch.long)
for _ in range(2):
    start = time.perf_counter()
    found = vramkit.estimate(
        model, (tokens, tokens), optimizer=torch.optim.AdamW, loss=class_loss, steps=2, gpu="2 TiB", engine={engine!r}
    )
    report(start, allocated=found.peak_allocated, reserved=found.peak_reserved)
"""

_MEMTRACKER = """
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
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
report(start, allocated=peak["Total"])
"""

_ACTIVATE = 'import vramkit.virtual_gpu\nvramkit.virtual_gpu.activate("2 TiB")'
COLUMNS = {
    "virtual engine": ("", _ESTIMATE.format(engine="virtual")),
    "fake engine": ("", _ESTIMATE.format(engine="fake")),
    "fake engine, CUDA": (_ACTIVATE, _ESTIMATE.format(engine="fake")),
    "MemTracker, fakes": (_ACTIVATE, _MEMTRACKER),
    "import torch": ("", "start = time.perf_counter()\nreport(start)"),
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


def peak_memory() -> int:
    """The most that was resident so far, bytes: of this process, or of the one below it that had most."""
    found = [os.getpid()]
    for pid in found:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    return max(map(_peak, found))


def _peak(pid: int) -> int:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return 1024 * int(lines.get("VmHWM", "0 kB").split()[0])


if __name__ == "__main__":
    main()
