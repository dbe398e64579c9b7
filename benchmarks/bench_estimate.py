"""``vramkit.estimate`` held against fresh processes: how far off each engine is, and the peers beside them.

    python benchmarks/bench_estimate.py [PROGRAM ...] [--columns NAME ...] [--gpu NAME] [--cpu-python PATH]

For each program a new process, with a virtual GPU and without vramkit.estimate or vramkit.profile, trains for three
steps and prints torch's own ``max_memory_allocated()`` and ``max_memory_reserved()``. A column is one way to say them
beforehand, in a process of its own: in "virtual" and "fake" there is no CUDA device, in "fake, CUDA" there is a virtual
one, "fake, CPU torch" is another interpreter, whose torch has no CUDA at all (``--cpu-python``). Peers give one figure,
which is compared with what is allocated. A cell says how many percent it is off: allocated, reserved.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

Figures = dict[str, Any]
"""``allocated`` and, where it is known, ``reserved``, bytes; ``seconds``; or ``error``."""

STEPS = 3
WIDTH = 20


# -- the columns: each runs in a worker process ------------------------------------------------------------------------


def by_engine(engine: str) -> Callable[[dict[str, Any], str], Figures]:
    def predict(program: dict[str, Any], gpu: str) -> Figures:
        import vramkit

        found = vramkit.estimate(**program, gpu=gpu, steps=STEPS, engine=engine)
        return {"allocated": found.peak_allocated, "reserved": found.peak_reserved}

    return predict


def by_memtracker(name: str) -> Figures:
    """As its documentation does it: all on fake tensors, made on the device; module statistics begun anew."""
    import torch
    from predicted_programs import PROGRAMS, step_of
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    with FakeTensorMode():
        with torch.device("cuda"):
            program = PROGRAMS[name]()
        train_step = step_of(program)
        tracker = MemTracker()
        tracker.track_external(program["model"])
        with tracker:
            for _ in range(STEPS):
                train_step()
                tracker.reset_mod_stats()  # it refuses a second step without it
    peaks = tracker.get_tracker_snapshot("peak")
    return {"allocated": peaks[torch.device("cuda", 0)]["Total"]}


def by_torchinfo(program: dict[str, Any], gpu: str) -> Figures:
    import torchinfo

    inputs = program["batch"][0].to("meta")  # it runs a forward, for which shapes suffice
    found = torchinfo.summary(program["model"].to("meta"), input_data=inputs, device="meta", verbose=0)
    return {"allocated": found.total_input + found.total_output_bytes + found.total_param_bytes}


def by_parameters(program: dict[str, Any], gpu: str) -> Figures:
    from vramkit import closed_form

    return {"allocated": 4 * closed_form.parameters(program["model"])}


@dataclass(frozen=True)
class Column:
    run: Callable[..., Figures]
    has_cuda: bool = False
    by_name: bool = False


COLUMNS = {
    "virtual": Column(by_engine("virtual")),
    "fake, CUDA": Column(by_engine("fake"), has_cuda=True),
    "fake": Column(by_engine("fake")),
    "fake, CPU torch": Column(by_engine("fake")),
    "MemTracker, fakes": Column(by_memtracker, has_cuda=True, by_name=True),
    "torchinfo": Column(by_torchinfo),
    "4 x parameters": Column(by_parameters),
}


def work(name: str, gpu: str) -> None:
    """Be a worker: answer each line, the name of a program, with a line of JSON."""
    column = COLUMNS[name]
    warnings.simplefilter("ignore")
    if column.has_cuda:
        from vramkit import virtual_gpu

        virtual_gpu.activate(gpu)
    from predicted_programs import PROGRAMS

    for line in sys.stdin:
        chosen = line.rstrip("\n")
        try:
            program = None if column.by_name else PROGRAMS[chosen]()
            start = time.perf_counter()
            figures = column.run(chosen) if program is None else column.run(program, gpu)
            figures["seconds"] = time.perf_counter() - start
        except Exception as error:  # whatever it is, the table says it
            figures = {"error": f"{type(error).__name__}: {error}"}
        print("RESULT" + json.dumps(figures), flush=True)


@dataclass
class Worker:
    """A column's process, and what it has said so far."""

    column: str
    gpu: str
    python: str
    said: dict[str, Figures] = field(default_factory=dict)
    _process: subprocess.Popen[str] | None = None

    def ask(self, program: str) -> Figures:
        """What it says of a program; a process that dies of it is an answer, too."""
        if self._process is None:
            self._process = subprocess.Popen(
                [self.python, __file__, "--gpu", self.gpu, "--worker", self.column],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{program}\n")
        self._process.stdin.flush()
        answer = next((line for line in self._process.stdout if line.startswith("RESULT")), None)
        if answer is None:
            status, self._process = self._process.wait(), None
            return {"error": f"the process ended with status {status}"}
        found: Figures = json.loads(answer.removeprefix("RESULT"))
        return found


# -- the table ---------------------------------------------------------------------------------------------------------

_FRESH = """
import warnings
warnings.simplefilter("ignore")
from predicted_programs import PROGRAMS, run_as_users_do
result = run_as_users_do(PROGRAMS[{name!r}](), steps={steps})
"""


def off(figures: Figures, measured: tuple[int, int]) -> list[float]:
    """How far, as fractions of what was measured: allocated, and reserved where it was said."""
    said = [figures["allocated"], *([figures["reserved"]] if "reserved" in figures else [])]
    return [each / true - 1 for each, true in zip(said, measured, strict=False)]


def cell(figures: Figures, measured: tuple[int, int]) -> str:
    if "error" in figures:
        return figures["error"].partition(":")[0].replace("the process ended with ", "ended: ")[: WIDTH - 2]
    if (figures["allocated"], figures.get("reserved")) == measured:
        return "equal"
    return " ".join(f"{each:+.2%}" for each in off(figures, measured))


def summary(worker: Worker, measured: dict[str, tuple[int, int]]) -> str:
    """A column in a line: how many are equal, the worst, the time; then the errors."""
    done = {name: each for name, each in worker.said.items() if "error" not in each}
    equal = sum((each["allocated"], each.get("reserved")) == measured[name] for name, each in done.items())
    line = f"{worker.column}: {equal} of {len(worker.said)} equal to the byte"
    for index, what in enumerate(("allocated", "reserved")):
        offs = {name: off(each, measured[name]) for name, each in done.items()}
        known = {name: each[index] for name, each in offs.items() if len(each) > index}
        if known:
            worst = max(known, key=lambda name: abs(known[name]))
            line += f"; {what} worst {known[worst]:+.3%} ({worst})"
    line += f"; {sum(each['seconds'] for each in done.values()):.1f} s"
    return "\n".join([line, *(f"    {name}: {e['error'][:200]}" for name, e in worker.said.items() if "error" in e)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help="default: all of them")
    parser.add_argument("--gpu", default="a100-80gb", help="default: %(default)s")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, metavar="NAME", help=f"of: {', '.join(COLUMNS)}")
    parser.add_argument("--cpu-python", metavar="PATH", help="an interpreter whose torch is a build without CUDA")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures, bytes")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.gpu)
        return
    import torch
    from predicted_programs import PROGRAMS
    from subprocesses import run_on

    columns = options.columns or [name for name in COLUMNS if name != "fake, CPU torch" or options.cpu_python]
    pythons = {"fake, CPU torch": options.cpu_python or sys.executable}
    workers = [Worker(name, options.gpu, pythons.get(name, sys.executable)) for name in columns]
    print(f"torch {torch.__version__}, {options.gpu}, {STEPS} steps; bytes, and percent off: allocated, reserved")
    print(f"{'program':28}{'allocated':>15}{'reserved':>15}  " + "".join(f"{name:{WIDTH}}" for name in columns))
    measured: dict[str, tuple[int, int]] = {}
    for name in options.programs or list(PROGRAMS):
        allocated, reserved = run_on(options.gpu, _FRESH.format(name=name, steps=STEPS))
        measured[name] = allocated, reserved
        print(f"{name:28}{allocated:15,}{reserved:15,}  ", end="", flush=True)
        for worker in workers:
            worker.said[name] = worker.ask(name)
            print(f"{cell(worker.said[name], measured[name]):{WIDTH}}", end="", flush=True)
        print(flush=True)
    if options.json:
        figures = {name: {each.column: each.said[name] for each in workers} for name in measured}
        options.json.write_text(json.dumps({"measured": measured, "said": figures}))
    print()
    for worker in workers:
        print(summary(worker, measured), flush=True)


if __name__ == "__main__":
    main()
