"""``vramkit.plan`` as its users call it, on fakes: what it finds, shows, leaves out and refuses."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vramkit
from vramkit.__main__ import main
from vramkit.programs.blocks import repeated_blocks


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inside = nn.LayerNorm(32), nn.Linear(32, 128)
        self.outside = nn.Linear(128, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.outside(torch.relu(self.inside(self.norm(x))))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.blocks = nn.Embedding(500, 32), nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(32, 500)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def loss(output: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(output.flatten(0, 1), batch[1].flatten())


BATCH = (torch.zeros(8, 4096, dtype=torch.long), torch.zeros(8, 4096, dtype=torch.long))
PLAIN: dict[str, Any] = {"loss": loss, "optimizer": torch.optim.AdamW, "engine": "fake", "alloc_conf": ""}


def planned(gpu: str, model: nn.Module | None = None, *, largest: int | None = 0, **others: Any) -> vramkit.Plan:
    model = Small() if model is None else model
    return vramkit.plan(model, BATCH, **{**PLAIN, **others}, gpu=gpu, largest=largest)


def reasons(plan: vramkit.Plan) -> dict[str, str]:
    return {each.name: each.reason for each in plan.left_out}


def ran_by_hand(variant: vramkit.Variant, gpu: vramkit.GPU) -> vramkit.Estimate:
    """An estimate of the code that a plan shows, written into a script."""
    names: dict[str, Any] = {"torch": torch, "model": Small(), "loss": loss}
    names["optimizer"] = torch.optim.AdamW(names["model"].parameters())
    names["parameters"] = names["model"].parameters()
    exec(variant.code, names)
    return vramkit.estimate(
        names["model"],
        BATCH,
        optimizer=names["optimizer"],
        step=names["train_step"],
        gpu=gpu,
        engine="fake",
        alloc_conf="",
    )


def test_the_cheapest_fits_and_its_code_has_its_peaks_in_a_script_too() -> None:
    plan = planned("600 MiB", largest=None)

    best = plan.cheapest
    assert best is not None
    assert best.fits
    assert not plan.plain.fits
    assert plan.variants[0] is plan.plain
    assert best.cost == min(each.cost for each in plan.variants if each.fits)
    assert best in plan.front
    assert {each.used - each.peak_reserved for each in plan.variants} == {plan.gpu.context}
    found = ran_by_hand(best, plan.gpu)
    assert (found.peak_allocated, found.peak_reserved) == (best.peak_allocated, best.peak_reserved)
    again = [each for each in plan.variants if each.changes and "checkpoint all" in each.name]
    assert again
    assert all(each.operations is None or each.operations > 1 for each in again)
    report = plan.report()
    assert best.name in " ".join(report.split())
    assert best.code.splitlines()[0] in report
    assert json.loads(json.dumps(plan.to_dict()))["cheapest"] == plan.variants.index(best)
    assert "<table" in plan._repr_html_()
    searched = [each for each in {plan.plain, best, *plan.front} if each.passes == 1]
    told = [each for each in plan.variants if each.largest_batch_size is not None]
    assert {plan.plain} < {*told} <= {*searched}
    assert all((each.largest_batch_size or 0) >= 8 for each in told if each.fits)
    assert all((each.largest_batch_size or 0) < 8 for each in told if not each.fits)
    plain = vramkit.estimate(Small(), BATCH, **PLAIN, gpu=plan.gpu)
    assert plan.plain.largest_batch_size == plain.largest_batch_size() < 8
    assert re.search(r"same +parts +accumulate", report)
    rows = [dataclasses.replace(each, largest_batch_size=1 << 24) for each in plan.variants]
    assert re.search(r"\bany +as it is", dataclasses.replace(plan, variants=tuple(rows)).report())


def test_where_nothing_fits_the_report_says_how_near_it_comes() -> None:
    model = nn.Linear(1024, 1024)

    plan = vramkit.plan(model, torch.zeros(4, 1024), optimizer=torch.optim.SGD, gpu="432 MiB", engine="fake")

    assert plan.cheapest is None
    assert plan.closest.name in plan.report()
    assert "Nothing that was run fits" in plan.report()
    assert reasons(plan)["gradient checkpointing"].startswith("The model repeats no block")


def with_own_step(**options: Any) -> dict[str, Any]:
    model = Small()
    optimizer = torch.optim.AdamW(model.parameters(), **options)

    def step(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        inputs, targets = (each.to("cuda") for each in batch)
        loss(model(inputs), (inputs, targets)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"model": model, "optimizer": optimizer, "step": step}


def test_a_step_of_your_own_is_changed_from_outside_alone() -> None:
    given = with_own_step()

    plan = planned("t4", **given, loss=None)

    tried = {each.name for each in plan.variants}
    assert {"AdamW(fused=True)", "AdamW(foreach=False)", "checkpoint all of 3 blocks"} < tried
    assert {"autocast", "micro-batches with accumulation", "last layer and loss in parts"} < {*reasons(plan)}
    assert not given["optimizer"].state
    assert given["optimizer"].defaults["fused"] is None
    fused = next(each for each in plan.variants if each.name == "AdamW(fused=True)")
    made = with_own_step(fused=True)
    found = vramkit.estimate(**made, batch=BATCH, gpu="t4", engine="fake", alloc_conf="")
    assert (fused.peak_allocated, fused.peak_reserved) == (found.peak_allocated, found.peak_reserved)


class TrainsItself(Small):
    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return loss(self(batch[0]), batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


def test_the_training_step_of_a_model_is_changed_from_outside_alone() -> None:
    plan = planned("t4", TrainsItself(), loss=None, optimizer=None)

    assert {each.name for each in plan.variants} >= {"as it is", "checkpoint all of 3 blocks"}
    assert reasons(plan)["autocast"].startswith("Your step decides")
    assert reasons(plan)["fused=True"].startswith("There are several optimizers, or nobody knows")
    assert not [each for each in plan.left_out if "raised" in each.reason]
    assert "AdamW(fused=True)" in {each.name for each in planned("t4", TrainsItself(), loss=None).variants}


def test_what_no_optimizer_trains_is_frozen_and_keeps_no_gradient() -> None:
    def head_only(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([*parameters][-2:])

    plan = planned("t4", optimizer=head_only)

    frozen = next(each for each in plan.variants if each.name == "freeze what no optimizer trains")
    gradients = vramkit.closed_form.gradients(Small()) - vramkit.closed_form.gradients(Small().head)
    assert plan.plain.peak_allocated - frozen.peak_allocated > gradients
    assert "'blocks'" in frozen.code
    assert "head" not in frozen.code


def test_weights_of_a_model_that_only_predicts_are_halved_as_the_card_computes() -> None:
    gpus = "t4", "a100-40gb"
    with torch.no_grad():
        plans = [
            vramkit.plan(Small(), BATCH[0], gpu=gpu, engine="fake", alloc_conf="", everything=True) for gpu in gpus
        ]

    names = [{each.name for each in plan.variants if each.effect == "weights"} for plan in plans]
    assert names == [{"weights in float16"}, {"weights in bfloat16"}]


def test_blocks_are_what_repeats_and_is_made_of_parts() -> None:
    def stage() -> nn.Sequential:
        return nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 8) for _ in range(2)))

    assert repeated_blocks(Small()) == tuple(f"blocks.{number}" for number in range(3))
    assert repeated_blocks(nn.Sequential(stage(), stage())) == ("0.0", "0.1", "1.0", "1.1")
    assert repeated_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == ()
    conv = [nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(3)]
    assert repeated_blocks(nn.Sequential(*conv)) == ("0", "1", "2")


def test_the_verb_prints_the_plan_or_its_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "planned_here.py").write_text(
        "import torch\ndef build():\n    return torch.nn.Linear(64, 64), torch.zeros(4, 64)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    code = main(["plan", "planned_here:build", "--gpu", "t4", "--engine", "fake", "--json", "-", "--html", "p.html"])

    found = json.loads(capsys.readouterr().out)
    assert (code, found["kind"], found["fits"], found["cheapest"]) == (0, "plan", True, 0)
    assert found["variants"][0]["changes"] == []
    assert found["versions"]["torch"] == torch.__version__
    assert 'id="variants"' in Path("p.html").read_text()
    assert main(["plan", "planned_here:build", "--lora", "4"]) == 2
    assert "with --lora. What it returns says itself how it is trained" in capsys.readouterr().err
    with pytest.raises(vramkit.UsageError, match="largest"):
        planned("t4", largest=-1)
