"""Every way of training on several GPUs: one process that plays a rank, held against real processes that all are there.

    python benchmarks/bench_ranks.py [--large] [--gpu h100] [--only FSDP2 ...]

Each case runs as real processes (``vramkit run --ranks all``), and then each of its ranks alone. A row says what a rank
came to, and whether the one process has the same events: sizes, order and addresses. The exit code is 1 where any
differs. The programs are ``tests/ranks/parallel_programs.py``; ``--large`` takes a model of 0.1 billion parameters
(about 15 minutes on two cores, and 1 GB for each of up to four processes).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import vramkit

_PROGRAM = Path(__file__).parents[1] / "tests" / "ranks" / "parallel_programs.py"
_OF_TWO = (
    "DDP",
    "DDP, bucket views",
    "DDP, static graph",
    "DDP, no_sync",
    "DDP, bf16 hook",
    "ZeRO-1",
    "FSDP2",
    "FSDP2, bf16",
    "FSDP2, no reshard",
    "FSDP2, CPU offload",
    "FSDP2, checkpoints, clipping",
    "HSDP",
    "FSDP1",
    "TP",
    "TP, sequence",
)
_OF_FOUR = ("HSDP, 2 x 2", "FSDP2 and TP, 2 x 2", "FSDP2 and TP, sequence, 2 x 2")


def main() -> int:
    """Print the matrix; 1: a case differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--only", nargs="+", default=[*_OF_TWO, *_OF_FOUR], metavar="CASE")
    options = parser.parse_args()
    print(f"{'case':<30} rank       allocated        reserved   events  one process   seconds: real, alone")
    differs = False
    for case in options.only:
        size = 4 if case in _OF_FOUR else 2
        began = time.monotonic()
        real = _play(options, case, size, "all")
        between = time.monotonic()
        alone = _play(options, case, size, ",".join(map(str, range(size))))
        seconds = f"{between - began:6.0f} {time.monotonic() - between:6.0f}"
        for rank in range(size):
            one, many = alone[rank], real[rank]
            equal = np.array_equal(_events(one), _events(many))
            differs |= not equal
            sizes = f"{many.peak_allocated:>16,}{many.peak_reserved:>16,}{len(many.tape.events):>9,}"
            verdict = "equal" if equal else f"DIFFERS: {one.peak_allocated:,} {one.peak_reserved:,}"
            print(f"{case:<30}{rank:>5}{sizes}  {verdict:<12}{seconds if not rank else ''}", flush=True)
    return int(differs)


def _play(options: argparse.Namespace, case: str, size: int, ranks: str) -> dict[int, vramkit.Profile]:
    with tempfile.TemporaryDirectory() as folder:
        saved, document = Path(folder, "rank.npz"), Path(folder, "run.json")
        command = [sys.executable, "-m", "vramkit", "run", "--gpu", options.gpu, "--world-size", str(size)]
        command += ["--ranks", ranks, "--max-events", "5000000", "--save", str(saved), "--json", str(document)]
        command += [str(_PROGRAM), *["--large"] * options.large, case]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{case}, ranks {ranks}:\n{done.stderr}")
        found = [each["rank"] for each in json.loads(document.read_text())["processes"]]
        names = [saved, *(Path(folder, f"rank-{number}.npz") for number in range(2, size + 1))]
        return {rank: _profile(name) for rank, name in zip(found, names, strict=True)}


def _profile(path: Path) -> vramkit.Profile:
    found = vramkit.load(path)
    assert isinstance(found, vramkit.Profile)
    return found


def _events(profile: vramkit.Profile) -> npt.NDArray[Any]:
    return profile.tape.events[["action", "size", "address"]]


if __name__ == "__main__":
    sys.exit(main())
