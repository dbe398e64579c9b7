"""A LightningModule is estimated as it is, and comes out as a Trainer of the real Lightning takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import missing
from subprocesses import run_on

import vramkit
from vramkit.integrations.measured_steps import MeasuredSteps

needs = pytest.mark.skipif(bool(missing("lightning")), reason=missing("lightning"))

MODULE = """
    import torch, lightning

    class Net(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(256, 2048), torch.nn.ReLU(), torch.nn.Linear(2048, 10))

        def training_step(self, batch, batch_idx):
            x, y = batch
            loss = torch.nn.functional.cross_entropy(self.layers(x), y)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters())
            return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer)}

    batch = (torch.zeros(512, 256), torch.zeros(512, dtype=torch.long))

    def trainer(**more):
        arguments = {"logger": False, "enable_checkpointing": False} | more
        return lightning.Trainer(
            accelerator="cuda", devices=1, enable_progress_bar=False, enable_model_summary=False, **arguments
        )
"""


@needs
@pytest.mark.virtual_gpu
def test_the_estimate_of_a_module_is_what_its_trainer_takes() -> None:
    found = run_on(
        "t4",
        MODULE
        + """
    import logging, warnings, vramkit
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    estimate = vramkit.estimate(Net(), batch, gpu="t4")
    found = vramkit.estimate(Net(), batch, gpu="t4").largest_batch_size("1 GiB")
    chosen = vramkit.auto_batch_size(Net(), batch, gpu="1 GiB").max_batch_size

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 3 * 512
        def __getitem__(self, index):
            return torch.zeros(256), 0

    trainer(max_epochs=1).fit(Net(), torch.utils.data.DataLoader(Rows(), batch_size=512))
    result = {
        "estimate": [estimate.peak_allocated, estimate.peak_reserved], "largest": found, "chosen": chosen,
        "trainer": [torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()],
    }
    """,
    )

    (allocated, reserved), (really_allocated, really_reserved) = found["estimate"], found["trainer"]
    assert reserved == really_reserved
    assert 0 <= really_allocated - allocated <= 16 * 512  # the numbers that Lightning's log keeps, a block each
    assert found["chosen"] == found["largest"] > 512


@needs
@pytest.mark.virtual_gpu
def test_a_callback_measures_the_first_steps_and_a_training_that_runs_out_of_memory() -> None:
    found = run_on(
        "512 MiB",
        MODULE
        + """
    import csv, os, tempfile
    from lightning.pytorch.loggers import CSVLogger
    from vramkit.integrations.lightning import MemoryCallback
    from vramkit.profiling.profiler import is_measuring

    def fit(rows, callbacks, **more):
        data = [(torch.zeros(rows, 256), torch.zeros(rows, dtype=torch.long))] * 8
        trainer(max_steps=4, callbacks=callbacks, **more).fit(Net(), torch.utils.data.DataLoader(data, batch_size=None))

    folder = tempfile.mkdtemp()
    fit(512, [], accumulate_grad_batches=2)
    without = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    memory, logger = MemoryCallback(html=os.path.join(folder, "memory.html")), CSVLogger(folder)
    fit(512, [memory], logger=logger, accumulate_grad_batches=2)
    result = {
        "logged": [*csv.DictReader(open(os.path.join(logger.log_dir, "metrics.csv")))],
        "figures": memory.result.metrics(), "steps": len(memory.result.steps), "page": os.listdir(folder),
        "modules": [each.name for each in memory.result.by_module],
        "same": torch.cuda.max_memory_allocated() == without,
    }
    failing = MemoryCallback()
    try:
        fit(1 << 16, [failing])
    except torch.OutOfMemoryError as error:
        result["notes"] = "".join(error.__notes__)
    result |= {"failed": len(failing.result.out_of_memory), "free": not is_measuring()}
    """,
    )

    [logged] = [each for each in found["logged"] if each["memory/peak_allocated"]]
    assert {name: float(logged[f"memory/{name}"]) for name in found["figures"]} == found["figures"]
    assert int(logged["step"]) == found["steps"] == 3
    assert "memory.html" in found["page"]
    assert found["modules"] == ["Net"]
    assert found["same"]
    assert "OUT OF MEMORY" in found["notes"]
    assert found["failed"] == 1
    assert found["free"]


@needs
@pytest.mark.virtual_gpu
def test_the_finder_in_the_place_of_lightnings_gives_the_size_that_its_training_then_takes() -> None:
    found = run_on(
        "1 GiB",
        MODULE
        + """
    import logging, warnings
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    from vramkit.integrations.lightning import BatchSizeFinder

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 1 << 16
        def __getitem__(self, index):
            return torch.zeros(256), 0

    class Loading(Net):
        def __init__(self):
            super().__init__()
            self.batch_size = 4
        def train_dataloader(self):
            return torch.utils.data.DataLoader(Rows(), batch_size=self.batch_size)

    class Starts(lightning.Callback):
        def on_train_start(self, trainer, module):
            self.states = len(trainer.optimizers[0].state)
            self.steps, self.rate = trainer.global_step, trainer.optimizers[0].param_groups[0]["lr"]
            self.same = module.layers[2].bias.tolist() == bias
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    module = Loading()
    bias = module.layers[2].bias.tolist()
    finder, starts = BatchSizeFinder(max_val=1 << 14), Starts()
    trainer(max_steps=4, accumulate_grad_batches=2, callbacks=[finder, starts]).fit(module)
    result = {
        "predicted": finder.found.peak_reserved, "took": torch.cuda.max_memory_reserved(),
        "sizes": [module.batch_size, finder.optimal_batch_size, finder.found.batch_size],
        "begins": [starts.states, starts.steps, starts.rate, starts.same],
        "failures": torch.cuda.memory_stats()["num_ooms"],
    }
    """,
    )

    assert found["predicted"] == found["took"]
    assert len({*found["sizes"]}) == 1
    assert found["sizes"][0] > 512
    assert found["begins"] == [0, 0, 0.001 / 3, True]  # ConstantLR's factor
    assert found["failures"] == 0


def test_another_rank_than_the_first_writes_a_page_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        measured = MeasuredSteps(steps=1, html=tmp_path / "memory.html", stacks=False)
        measured.begin(torch.nn.Linear(4, 4), 0)
        measured.end()

    assert sorted(each.name for each in tmp_path.iterdir()) == ["memory-rank1.html", "memory.html"]


class OwnStep(torch.nn.Module):
    """As Lightning's, without it; each test says what ``configure_optimizers`` returns."""

    def __init__(self, made: Any = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, 64)
        self.made = made

    def training_step(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.layer(batch).sum()}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters())
        kinds = {"one": optimizer, "list": [optimizer], "pair": ([optimizer], []), "dicts": [{"optimizer": optimizer}]}
        return kinds.get(self.made)


@pytest.mark.parametrize("made", ["one", "list", "pair", "dicts", None])
def test_what_configure_optimizers_returns_is_stepped(made: str | None) -> None:
    estimate = vramkit.estimate(OwnStep(made), torch.zeros(8, 64), gpu="t4")

    parameters = 4 * (64 * 64 + 64)
    assert estimate.peak.parameters == parameters
    assert (estimate.final.optimizer_state >= 2 * parameters) == (made is not None)


def test_a_module_that_steps_its_optimizers_itself_is_told_what_to_pass() -> None:
    model = OwnStep("one")
    model.automatic_optimization = False  # type: ignore[assignment] # as Lightning's, no tensor

    with pytest.raises(vramkit.UsageError, match="pass step="):
        vramkit.estimate(model, torch.zeros(8, 64), gpu="t4")
