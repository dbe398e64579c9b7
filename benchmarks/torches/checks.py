"""What is checked of one torch, in its own interpreter: prints a line of JSON. Judges nothing beside what is equal.

python -m benchmarks.torches.checks CHECK
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "allocator")]

PROGRAMS = 200
MIB = 1 << 20
_SIZES: tuple[Callable[[random.Random], int], ...] = (
    lambda draw: draw.choice([1, 512, 513, MIB, MIB + 1, 2 * MIB, 10 * MIB, 10 * MIB + 1, 20 * MIB, 64 * MIB]),
    lambda draw: draw.randint(1, 8 << 10),
    lambda draw: draw.randint(1, 2 * MIB),
    lambda draw: draw.randint(MIB, 24 * MIB),
    lambda draw: draw.randint(MIB, 150 * MIB),
)
_CONFS = (
    "",
    "expandable_segments:True",
    "max_split_size_mb:64",
    "roundup_power2_divisions:4",
    "garbage_collection_threshold:0.5",
)


def about() -> dict[str, Any]:
    """What there is."""
    import torch

    from vramkit.torch_releases import installed_tie_break

    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "ties": installed_tie_break(),
        "python": sys.version.split()[0],
    }


def allocator() -> dict[str, Any]:
    """Random programs on torch's own allocator and on the simulator: every event, every block."""
    from vramkit import virtual_gpu

    virtual_gpu.activate("a100-80gb")
    import real_allocator as real

    differ = []
    for seed in range(PROGRAMS):
        program, conf = _random_program(random.Random(seed))
        did = real.on_torch(program, conf)
        simulated = real.on_simulator(program, conf, did)
        if (simulated.events, simulated.failed, simulated.segments) != (did.events, did.failed, did.segments):
            differ.append(seed)
    return {"equal": PROGRAMS - len(differ), "of": PROGRAMS, "differ": differ[:5]}


def _random_program(draw: random.Random) -> tuple[list[tuple[Any, ...]], str]:
    program: list[tuple[Any, ...]] = [("fraction", draw.randint(40, 700))] if draw.random() < 0.5 else []
    for _ in range(draw.randint(20, 100)):
        what = draw.choices(["malloc", "free", "empty"], [12, 8, 1])[0]
        if what == "malloc":
            program.append((what, draw.choice(_SIZES)(draw), draw.choice([0, 0, 0, 1])))
        else:
            program.append((what, draw.randrange(1000)) if what == "free" else (what,))
    return program, draw.choice(_CONFS)


def profile() -> dict[str, Any]:
    """A profile's peaks are torch's own, its categories sum to them, and the libraries' workspaces are WORKSPACE."""
    from vramkit import virtual_gpu

    virtual_gpu.activate("a100-40gb")
    import torch
    from workloads import GPT, tokens

    import vramkit
    from vramkit.torch_internals.allocator import workspace_sizes

    model = GPT(layers=2, width=96, heads=2, vocabulary=500, length=96).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    batch = tuple(each.cuda() for each in tokens(4, 96)())
    with vramkit.profile(model, optimizer) as measuring:
        for _ in range(3):
            torch.nn.functional.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
    found = measuring.result
    kept = found.tape.allocations[found.tape.allocations["category"] == vramkit.Category.WORKSPACE]
    problems = []
    if (found.peak_allocated, found.peak_reserved) != (
        torch.cuda.max_memory_allocated(),
        torch.cuda.max_memory_reserved(),
    ):
        problems.append("its peaks are not torch's")
    if found.peak.allocated != found.peak_allocated:
        problems.append("its categories don't sum to the peak")
    if {*kept["requested"].tolist()} != {*workspace_sizes()} & {*found.tape.allocations["requested"].tolist()}:
        problems.append("a workspace is labelled as something else")
    return {"problems": problems}


def run() -> dict[str, Any]:
    """What ``vramkit run`` says of a script is what torch says in it."""
    script = (
        "import torch\nmodel = torch.nn.Linear(512, 512).cuda()\n"
        "for _ in range(3):\n    model(torch.zeros(64, 512, device='cuda')).sum().backward()\n"
        "print(torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), file=open('said', 'w'))\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train.py").write_text(script)
        command = [sys.executable, "-m", "vramkit", "run", "--gpu", "a100-40gb", "--json", "out.json", "train.py"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        [process] = json.loads((Path(folder) / "out.json").read_text())["processes"]
        said = tuple(map(int, (Path(folder) / "said").read_text().split()))
    device = process["result"]["devices"][0]
    same = (device["peak_allocated"], device["peak_reserved"]) == said
    return {"problems": [] if same else ["its peaks are not the script's"]}


def auto_batch_size() -> dict[str, Any]:
    """The size that it finds runs in a fresh process."""
    from vramkit import virtual_gpu

    virtual_gpu.activate("2 GiB")
    import torch
    from subprocesses import run_on

    import vramkit

    def model() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)).cuda()

    size = int(vramkit.auto_batch_size(model(), torch.zeros(4, 784), optimizer=torch.optim.Adam))
    code = """
    import torch
    model = torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)).cuda()
    optimizer = torch.optim.Adam(model.parameters())
    result = True
    try:
        for _ in range(3):
            model(torch.zeros({size}, 784, device="cuda")).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    except torch.OutOfMemoryError:
        result = False
    """
    fits = run_on("2 GiB", code.format(size=size))
    return {"size": size, "problems": [] if fits else [f"{size} rows run out of memory in a fresh process"]}


CHECKS = {each.__name__: each for each in (about, allocator, profile, run, auto_batch_size)}


def main() -> None:
    """Run one check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("check", choices=CHECKS)
    warnings.simplefilter("ignore")
    print("RESULT" + json.dumps(CHECKS[parser.parse_args().check]()), flush=True)


if __name__ == "__main__":
    main()
