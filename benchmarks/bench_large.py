"""A GPT of 65 billion parameters, predicted on a machine that has no memory for it: seconds and memory, side by side.

    python benchmarks/bench_large.py [--layers 80] [--only NAME ...]

80 layers of width 8192, 64 heads, sequences of 4096 tokens, batch 1, two steps with AdamW, the model on ``meta``. Each
column is a process of its own. Its seconds are those of the call, after torch was imported; the first call of the
virtual engine starts the helper process, which imports torch once more. The memory is the peak of its largest process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"

_MODEL = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {tests!r})
{before}
import torch
from predicted_programs import class_loss
from workloads import GPT

def build():
    return GPT(layers={layers}, width=8192, heads=64, length=4096)

def report(start, **figures):
    print("RESULT" + json.dumps(dict(seconds=time.perf_counter() - start, **figures)), flush=True)
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
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=80, help="default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=COLUMNS, default=list(COLUMNS), metavar="NAME", help="columns")
    options = parser.parse_args()
    print(f"{'':28}{'seconds':>9}{'memory':>12}{'allocated':>22}{'reserved':>22}")
    for name in options.only:
        before, code = COLUMNS[name]
        frame = _MODEL.format(tests=str(TESTS), before=before, layers=options.layers)
        output, peak = run(frame + code)
        rows = [json.loads(line[6:]) for line in output.splitlines() if line.startswith("RESULT")]
        for number, row in enumerate(rows):
            sizes = [f"{row[key]:,} B" if key in row else "" for key in ("allocated", "reserved")]
            shown = name if not number else f"{name}, again"
            print(f"{shown:28}{row['seconds']:8.1f} s{peak / 1e6:9,.0f} MB{sizes[0]:>22}{sizes[1]:>22}", flush=True)
        if not rows:
            print(f"{name:28}failed: {output.strip().splitlines()[-1][:160]}", flush=True)


def run(code: str) -> tuple[str, int]:
    """What a process prints, and the peak of the resident memory of it or the largest of its descendants, bytes."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    peaks: list[int] = [0]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            peaks.append(max(map(_peak, _family(process.pid))))

    watching = threading.Thread(target=watch)
    watching.start()
    output, _ = process.communicate()
    over.set()
    watching.join()
    return output, max(peaks)


def _family(root: int) -> list[int]:
    found = [root]
    for pid in found:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:  # it has just ended
                continue
    return found


def _peak(pid: int) -> int:
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except OSError:
        return 0
    return 1024 * int(lines.get("VmHWM", "0 kB").split()[0])


if __name__ == "__main__":
    main()
