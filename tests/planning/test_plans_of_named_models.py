"""Of a model by its name: a plan's changes come to what the same options do, to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from frameworks import missing
from torch.utils.checkpoint import checkpoint

import vramkit
import vramkit.models
from vramkit import gpus
from vramkit.allocator import AllocatorConf
from vramkit.engines.choosing import open_session
from vramkit.planning.changes import Change, LeftOut
from vramkit.planning.changes.offers import offers
from vramkit.planning.facts import facts_of
from vramkit.planning.measuring import Measuring
from vramkit.programs.arguments import program_of

if why := missing("transformers", "peft", "timm"):
    pytest.skip(why, allow_module_level=True)

CONFIGS = Path(__file__).parents[1] / "models" / "configs"
CARD = gpus.find("a100-40gb")

Options = dict[str, Any]


class Planned:
    """The changes that a plan would try of a model by its name, on fake tensors."""

    def __init__(self, name: str, options: Options, gpu: gpus.GPU = CARD) -> None:
        given = vramkit.models.load(name, **options).arguments()
        program = program_of("A test", **given, loss=None, autocast=None, steps=2)
        rows = options["batch_size"]
        self.facts = facts_of(program, gpu, rows, AllocatorConf())
        self.measuring = Measuring(open_session(program, "fake", ""), gpu, rows, self.facts, "")
        families, self.left_out = offers(self.facts)
        self.changes: list[Change] = [change for family in families for change in family.changes]

    def peaks(self, *names: str) -> tuple[int, int]:
        chosen = tuple(each for each in self.changes if any(name in each.name for name in names))
        assert len(chosen) == len(names)
        outcome = self.measuring.run(chosen)
        assert not outcome.failure
        return outcome.peak_allocated, outcome.peak_reserved


def estimated(name: str, options: Options, gpu: gpus.GPU = CARD) -> tuple[int, int]:
    given = vramkit.models.load(name, **options).arguments()
    found = vramkit.estimate(**given, gpu=gpu, engine="fake", steps=2, alloc_conf="")
    return found.peak_allocated, found.peak_reserved


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return configured(tmp_path_factory, "gpt2", n_layer=3, n_embd=64, n_head=4)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return configured(tmp_path_factory, "llama-small", num_hidden_layers=3)


def configured(factory: pytest.TempPathFactory, name: str, **others: int) -> str:
    folder = factory.mktemp(name)
    config = json.loads((CONFIGS / f"{name}.json").read_text()) | others
    (folder / "config.json").write_text(json.dumps(config))
    return f"hf:{folder}"


def test_a_change_is_what_the_same_option_does(gpt2: str) -> None:
    base: Options = {"batch_size": 4, "seq_len": 64}
    planned = Planned(gpt2, base)
    options: dict[tuple[str, ...], Options] = {
        (): {},
        ("accumulate 2 x 2",): {"batch_size": 2, "accumulate": 2},
        ("checkpoint all",): {"checkpointing": True},
        ("autocast to bfloat16",): {"precision": "bf16-mixed"},
        ("weights in bfloat16",): {"dtype": "bfloat16"},
        ("AdamW(fused=True)",): {"optimizer": "adamw-fused"},
        ("accumulate 4 x 1", "checkpoint all", "autocast to bfloat16", "AdamW(fused=True)"): {
            "batch_size": 1,
            "accumulate": 4,
            "checkpointing": True,
            "precision": "bf16-mixed",
            "optimizer": "adamw-fused",
        },
    }

    found = {names: planned.peaks(*names) for names in options}

    assert found == {names: estimated(gpt2, base | each) for names, each in options.items()}
    assert len({*found.values()}) > len(found) // 2  # they are not all the same program


def test_what_a_step_accumulates_and_scales_already_stays(gpt2: str) -> None:
    base: Options = {"batch_size": 4, "seq_len": 64, "accumulate": 2, "precision": "16-mixed"}
    planned = Planned(gpt2, base)

    found = planned.peaks(), planned.peaks("accumulate 2 x 2"), planned.peaks("AdamW(fused=True)")

    assert found[0] == estimated(gpt2, base)
    assert found[1] == estimated(gpt2, base | {"batch_size": 2, "accumulate": 4})
    assert found[2] == estimated(gpt2, base | {"optimizer": "adamw-fused"})


def test_adapters_are_trained_with_the_same_changes(llama: str) -> None:
    base: Options = {"batch_size": 4, "seq_len": 64, "lora": 4, "dtype": "float32"}
    planned = Planned(llama, base)

    found = planned.peaks("checkpoint all"), planned.peaks("accumulate 2 x 2", "autocast to bfloat16")

    assert found[0] == estimated(llama, base | {"checkpointing": True})
    assert found[1] == estimated(llama, base | {"batch_size": 2, "accumulate": 2, "precision": "bf16-mixed"})


def test_on_a_card_without_bfloat16_a_scaler_is_part_of_the_change(gpt2: str) -> None:
    base: Options = {"batch_size": 2, "seq_len": 64}
    card = gpus.find("t4")

    found = Planned(gpt2, base, card).peaks("autocast to float16")

    assert found == estimated(gpt2, base | {"precision": "16-mixed"}, card)


def test_of_images_the_loss_is_called_as_their_step_does() -> None:
    name = "timm:vit_tiny_patch16_224"
    base: Options = {"batch_size": 4}
    planned = Planned(name, base)

    found = planned.peaks("accumulate 2 x 2"), planned.peaks("weights in bfloat16")

    assert found[0] == estimated(name, {"batch_size": 2, "accumulate": 2})
    assert found[1] == estimated(name, base | {"dtype": "bfloat16"})


def test_the_loss_of_the_next_word_in_parts_is_that_of_a_person(gpt2: str) -> None:
    options: Options = {"batch_size": 4, "seq_len": 64}
    planned = Planned(gpt2, options)
    given = vramkit.models.load(gpt2, **options)
    model: Any = given.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def of_row(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model.lm_head(hidden).float().flatten(0, 1), labels.flatten())

    def step(batch: dict[str, torch.Tensor]) -> None:
        batch = {name: each.to("cuda") for name, each in batch.items()}
        inputs = {name: each for name, each in batch.items() if name != "labels"}
        hidden = model.transformer(**inputs).last_hidden_state
        labels = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)
        pieces = [*zip(hidden.split(1), labels.split(1), strict=True)]
        value: Any = sum(checkpoint(of_row, *piece, use_reentrant=False) for piece in pieces) / 4
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    found = planned.peaks("loss of 1 row")

    by_hand = vramkit.estimate(model, given.batch, step=step, optimizer=optimizer, gpu=CARD, engine="fake", steps=2)
    assert found == (by_hand.peak_allocated, by_hand.peak_reserved)
    assert found[0] < planned.peaks()[0]


def test_the_code_of_a_change_is_a_scripts(gpt2: str) -> None:
    planned = Planned(gpt2, {"batch_size": 4, "seq_len": 64})

    code = planned.measuring.draft(each for each in planned.changes if each.name == "accumulate 2 x 2").code()

    assert "value = model(**batch).loss / len(parts)" in code


@pytest.mark.parametrize("name", ["accumulation", "autocast"])
def test_a_compiled_model_keeps_its_step(gpt2: str, name: str) -> None:
    given = vramkit.models.load(gpt2, batch_size=2, seq_len=64)
    given.step.model = torch.compile(given.model)  # type: ignore[attr-defined] # a TrainingStep
    program = program_of("A test", **given.arguments(), loss=None, autocast=None, steps=2)

    _, left_out = offers(facts_of(program, CARD, 2, AllocatorConf()))

    assert [each for each in left_out if isinstance(each, LeftOut) and name in each.name and "Your step" in each.reason]
