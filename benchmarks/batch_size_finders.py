"""Who finds batch sizes, each as its users call it, in a process of its own: vramkit, Lightning, accelerate.

Every finder trains the same programs, and every trial of one is three steps. They return what the benchmark compares.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from fitted_programs import FITTED, STEPS
from predicted_programs import Program, run_as_users_do

import vramkit
from vramkit.programs.batches import at_size


@dataclass
class Finding:
    """What a finder came to."""

    size: int
    trials: int
    """Calls or runs at one size, probes included."""
    probes: int = 0
    """Of these, small ones to learn from."""
    steps: int = 0
    """Training steps, those of trials that ran out of memory included."""
    ooms: int = 0
    """Trials that ran out of memory."""
    seconds: float = 0.0


def vramkit_auto(program: Program) -> Finding:
    program["model"].to("cuda")
    program["optimizer"] = program["optimizer"](program["model"].parameters())
    found = vramkit.auto_batch_size(**program)
    probes = sum(trial.is_probe for trial in found.trials)
    ooms = sum(trial.ran_out for trial in found.trials)
    return Finding(found.max_batch_size, len(found.trials), probes, STEPS * len(found.trials), ooms)


def _calls(decorate: Callable[[Callable[[int], int]], Callable[[], int]], name: str) -> Finding:
    sizes: list[int] = []

    @decorate
    def train(batch_size: int) -> int:
        sizes.append(batch_size)
        program = FITTED[name]()
        run_as_users_do({**program, "batch": at_size(program["batch"], batch_size)}, STEPS)
        return batch_size

    size = train()
    return Finding(size, len(sizes), steps=STEPS * len(sizes))


def vramkit_decorator(start: int, name: str) -> Finding:
    trials: list[vramkit.Trial] = []
    finding = _calls(vramkit.fit_batch_size(starting_batch_size=start, on_trial=trials.append), name)
    finding.probes = sum(trial.is_probe for trial in trials)
    finding.ooms = sum(trial.ran_out for trial in trials)
    return finding


def accelerate(start: int, name: str) -> Finding:
    from accelerate.utils import find_executable_batch_size

    finding = _calls(find_executable_batch_size(starting_batch_size=start), name)
    finding.ooms = finding.trials - 1
    return finding


def lightning(mode: str, program: Program) -> Finding:
    import lightning.pytorch as pl
    from lightning.pytorch.tuner import Tuner
    from torch.utils.data import DataLoader, IterableDataset

    class Batches(IterableDataset[Any]):
        def __init__(self, size: int) -> None:
            self.batch = at_size(program["batch"], size)

        def __iter__(self) -> Iterator[Any]:
            while True:
                yield self.batch

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = program["model"]
            self.sizes: list[int] = []
            self.steps = 0
            self.batch_size = 2

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "batch_size" and (not self.sizes or self.sizes[-1] != value):
                self.sizes.append(value)
            super().__setattr__(name, value)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            self.steps += 1
            return program["loss"](self.model(batch[0]), batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return program["optimizer"](self.model.parameters())

        def train_dataloader(self) -> Any:
            return DataLoader(Batches(self.batch_size), batch_size=None)

    module = Module()
    trainer = pl.Trainer(
        accelerator="gpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, precision="bf16-mixed" if program.get("autocast") else "32-true", max_steps=STEPS,
    )  # fmt: skip
    failures = 0
    fit_loop_run = trainer.fit_loop.run

    def counted() -> None:
        nonlocal failures
        try:
            fit_loop_run()
        except torch.OutOfMemoryError:
            failures += 1
            raise

    trainer.fit_loop.run = counted  # type: ignore[method-assign] # to count what it swallows
    size = Tuner(trainer).scale_batch_size(module, mode=mode, steps_per_trial=STEPS, init_val=2, max_trials=25)
    return Finding(size or 0, len(set(module.sizes)), steps=module.steps, ooms=failures)


FINDERS: dict[str, Callable[[str], Finding]] = {
    "vramkit.auto_batch_size": lambda name: vramkit_auto(FITTED[name]()),
    "vramkit.fit_batch_size from 128": lambda name: vramkit_decorator(128, name),
    "vramkit.fit_batch_size from 8192": lambda name: vramkit_decorator(8192, name),
    "Lightning, power": lambda name: lightning("power", FITTED[name]()),
    "Lightning, binsearch": lambda name: lightning("binsearch", FITTED[name]()),
    "accelerate from 128": lambda name: accelerate(128, name),
    "accelerate from 8192": lambda name: accelerate(8192, name),
}
"""By name; each takes the name of a program."""

PACKAGES = {"Lightning": "lightning", "accelerate": "accelerate"}
"""What the finders of a name need."""


def find(finder: str, name: str) -> dict[str, Any]:
    """A finding as plain values, with the seconds that it took."""
    torch.cuda.init()
    start = time.perf_counter()
    finding = FINDERS[finder](name)
    finding.seconds = time.perf_counter() - start
    return asdict(finding)
