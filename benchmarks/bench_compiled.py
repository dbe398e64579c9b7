"""``vramkit.estimate`` of compiled models, with an empty and with a full cache, held against fresh processes.

    python benchmarks/bench_compiled.py [PROGRAM ...] [--modes MODE ...] [--gpu NAME]

For each program the cache of virtual GPUs is emptied. Then three processes, each new: an estimate, which compiles; the
same again, which finds its kernels; and three steps as a user writes them, whose peaks torch itself says, over all and
in the third step. All of it with Inductor on the virtual GPU; minutes for each program.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

_ESTIMATE = """
import torch, vramkit
from predicted_programs import PROGRAMS
program = PROGRAMS[{program!r}]()
program["model"] = torch.compile(program["model"], mode={mode!r})
found = vramkit.estimate(**program, gpu={gpu!r}, steps=3, engine="virtual")
third = found.steps[2]
result = [found.peak_allocated, found.peak_reserved, third.peak_allocated, third.peak_reserved]
print("RESULT" + __import__("json").dumps([result, [note for note in found.notes if "cache" in note]]))
"""
_FRESH = """
from vramkit import virtual_gpu
virtual_gpu.activate({gpu!r})
import torch
from predicted_programs import PROGRAMS, step_of
program = PROGRAMS[{program!r}]()
program["model"] = torch.compile(program["model"].to("cuda"), mode={mode!r})
step, peaks = step_of(program), []
for _ in range(3):
    step()
    peaks.append((torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()))
    torch.cuda.reset_peak_memory_stats()
result = [*map(max, *peaks), *peaks[2]]
print("RESULT" + __import__("json").dumps([result, []]))
"""


def run(code: str, **names: Any) -> tuple[list[int], list[str]]:
    """What a snippet found in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code.format(**names)}"],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    figures, notes = json.loads(done.stdout.rsplit("RESULT", 1)[1])
    return figures, notes


def main() -> None:
    """Print a row for each program and mode."""
    from vramkit.virtual_gpu.cache import cache_folder

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="*", default=["gpt fp32", "resnet50"])
    parser.add_argument("--modes", nargs="*", default=["default", "reduce-overhead"])
    parser.add_argument("--gpu", default="a100-40gb")
    options = parser.parse_args()
    for program in options.programs:
        for mode in options.modes:
            shutil.rmtree(cache_folder() / "compiled", ignore_errors=True)
            names = {"program": program, "mode": mode, "gpu": options.gpu}
            (cold, notes), (warm, _), (fresh, _) = (
                run(_ESTIMATE, **names),
                run(_ESTIMATE, **names),
                run(_FRESH, **names),
            )
            equal = "equal" if cold == warm == fresh else "DIFFERENT"
            print(f"{program}, {mode}: {equal}: cold {cold}, warm {warm}, fresh process {fresh}", *notes, flush=True)


if __name__ == "__main__":
    main()
