"""Every way of training on several GPUs: one process that plays a rank, held against real processes that all are there.

    python benchmarks/bench_ranks.py [--large] [--gpu h100] [--only FSDP2 ...]

Each case runs as real processes (``vramkit run --ranks all``), and then each of its ranks alone; of pipelines, whose
ranks ask each other, a rank of each stage. A row says what a rank came to, and whether it has the same events without
the others: sizes, order and addresses. The exit code is 1 where any differs. The programs
are ``tests/ranks/parallel_programs.py``; ``--large`` takes a model of 0.1 billion parameters
(about 15 minutes on two cores, and 1 GB for each of up to four processes).
"""

from __future__ import annotations

import argparse
import json
import os
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
    "FSDP2, compiled",
    "Checkpoints",
    "Objects",
)
_OF_FOUR = ("HSDP, 2 x 2", "FSDP2 and TP, 2 x 2", "FSDP2 and TP, sequence, 2 x 2")
_OF_STAGES = {
    "GPipe": "0",
    "1F1B": "0",
    "Interleaved": "0",
    "GPipe and FSDP2, 2 x 2": "1,3",
    "1F1B and FSDP2, 2 x 2": "1,3",
    "Interleaved and FSDP2, 2 x 2": "1,3",
}
"""Pipelines, and the ranks that are played without the others: a first stage, or two that meet."""


def main() -> int:
    """Print the matrix; 1: a case differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--only", nargs="+", default=[*_OF_TWO, *_OF_FOUR, *_OF_STAGES], metavar="CASE")
    options = parser.parse_args()
    print(f"{'case':<30} rank       allocated        reserved   events  without the others   seconds: real, without")
    differs = False
    for case in options.only:
        size = 4 if case.endswith("2 x 2") else 2
        some = _OF_STAGES.get(case, ",".join(map(str, range(size))))
        began = time.monotonic()
        real = _play(options, case, size, "all")
        between = time.monotonic()
        alone = _play(options, case, size, some, *["--alone"] * (case not in _OF_STAGES))
        seconds = f"{between - began:6.0f} {time.monotonic() - between:6.0f}"
        for number, rank in enumerate(sorted(alone)):
            one, many = alone[rank], real[rank]
            equal = np.array_equal(_events(one), _events(many))
            differs |= not equal
            sizes = f"{many.peak_allocated:>16,}{many.peak_reserved:>16,}{len(many.tape.events):>9,}"
            verdict = "equal" if equal else f"DIFFERS: {one.peak_allocated:,} {one.peak_reserved:,}"
            print(f"{case:<30}{rank:>5}{sizes}  {verdict:<12}{'' if number else seconds}", flush=True)
    return int(differs)


def _play(options: argparse.Namespace, case: str, size: int, ranks: str, *alone: str) -> dict[int, vramkit.Profile]:
    with tempfile.TemporaryDirectory() as folder:
        saved, document = Path(folder, "rank.npz"), Path(folder, "run.json")
        command = [sys.executable, "-m", "vramkit", "run", "--gpu", options.gpu, "--world-size", str(size)]
        command += ["--ranks", ranks, *alone, "--max-events", "5000000", "--save", str(saved), "--json", str(document)]
        command += [str(_PROGRAM), *["--large"] * options.large, case]
        environment = {**os.environ, "CHECKPOINTS": str(Path(folder, "checkpoints"))}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(f"{case}, ranks {ranks}:\n{done.stderr}")
        found = [each["rank"] for each in json.loads(document.read_text())["processes"]]
        names = [saved, *(Path(folder, f"rank-{number}.npz") for number in range(2, len(found) + 1))]
        return {rank: _profile(name) for rank, name in zip(found, names, strict=True)}


def _profile(path: Path) -> vramkit.Profile:
    found = vramkit.load(path)
    assert isinstance(found, vramkit.Profile)
    return found


def _events(profile: vramkit.Profile) -> npt.NDArray[Any]:
    return profile.tape.events[["action", "size", "address"]]


if __name__ == "__main__":
    sys.exit(main())
