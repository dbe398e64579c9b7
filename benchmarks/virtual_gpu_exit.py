"""Counts how a process ends that finishes right after ``backward()``, and whether all runs print the same figures.

    python benchmarks/virtual_gpu_exit.py [--runs 50] [--without-remedy]

With the remedy (``vramkit.virtual_gpu`` lets torch's autograd threads come to rest) every run has to end with status 0;
without it some abort, how many depends on the machine.
"""

from __future__ import annotations

import argparse
import collections
import subprocess
import sys

_SCRIPT = """
import atexit
from vramkit import virtual_gpu
from vramkit.virtual_gpu import activation
virtual_gpu.activate("a100-80gb")
if {without}:
    atexit.unregister(activation.let_autograd_rest)
import torch
w = torch.ones(1000, 1000, device="cuda", requires_grad=True)
loss = ((w @ w).relu() @ w).sum()
print(torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), torch.cuda.max_memory_allocated(), flush=True)
loss.backward()
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--without-remedy", action="store_true")
    arguments = parser.parse_args()
    script = _SCRIPT.format(without=arguments.without_remedy)
    ends: collections.Counter[tuple[int, str]] = collections.Counter()
    for _ in range(arguments.runs):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        ends[done.returncode, done.stdout.strip()] += 1
    for (status, figures), count in ends.most_common():
        print(f"{count:3d} runs: status {status}, figures {figures}")
    return 0 if len(ends) == 1 and next(iter(ends))[0] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
