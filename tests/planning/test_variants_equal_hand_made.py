"""Every change of a plan, alone and with others, against the same change made by hand in the model and the step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import changed_by_hand as hand
import pytest
import torch
from changed_by_hand import ALONE, KINDS, ON_A_T4, TOGETHER, Hand, batch_of, by_hand, loss
from frameworks import missing
from torch import nn

import vramkit
from vramkit import gpus
from vramkit.allocator import AllocatorConf
from vramkit.engines.choosing import open_session
from vramkit.planning.changes import Change
from vramkit.planning.changes.offers import offers
from vramkit.planning.facts import facts_of
from vramkit.planning.measuring import Measuring
from vramkit.programs.arguments import program_of

FOUND = {
    "fused": ["AdamW(fused=True)"],
    "foreach": ["AdamW(foreach=False)"],
    "2 parts": ["accumulate 2 x 4"],
    "8 parts": ["accumulate 8 x 1"],
    "loss in parts": ["of 1 row at once"],
    "all blocks": ["checkpoint all"],
    "every 2nd block": ["checkpoint every 2nd"],
    "bfloat16": ["autocast to bfloat16"],
    "on the host": ["save_on_cpu"],
    "state on the host": ["optimizer state on the CPU"],
    "half": ["weights in bfloat16"],
    "sgd": ["SGD"],
    "adafactor": ["Adafactor"],
    "as it is": [],
    "parts, blocks, fused": ["AdamW(fused=True)", "accumulate 2 x 4", "checkpoint every 2nd"],
    "parts, loss, blocks, bfloat16": ["accumulate 2 x 4", "of 1 row", "checkpoint all", "autocast to bfloat16"],
    "blocks, half, host": ["checkpoint all", "save_on_cpu", "weights in bfloat16"],
    "float16": ["autocast to float16"],
    "float16, parts, fused": ["AdamW(fused=True)", "accumulate 4 x 2", "autocast to float16"],
}
"""By the name of what was done by hand: what a plan calls it."""

NAMES = {
    "Words": [*ALONE, *TOGETHER],
    # Each run of a CNN asks cuDNN anew.
    "Pictures": [
        "as it is", "2 parts", "every 2nd block", "bfloat16", "half", "on the host", "parts, loss, blocks, bfloat16"
    ],
}  # fmt: skip


class Planned:
    """The changes that a plan would try, run one by one."""

    def __init__(self, kind: type[nn.Module], gpu: str, engine: str) -> None:
        program = program_of(
            "A test",
            kind(),
            batch_of(kind),
            optimizer=torch.optim.AdamW,
            step=None,
            loss=loss,
            autocast=None,
            steps=3,
        )
        self.gpu = gpus.find(gpu)
        facts = facts_of(program, self.gpu, hand.ROWS, AllocatorConf())
        self.measuring = Measuring(open_session(program, engine, ""), self.gpu, hand.ROWS, facts, "")  # type: ignore[arg-type]
        families, self.left_out = offers(facts)
        self.changes: list[Change] = [change for family in families for change in family.changes]
        self.measuring.run(())

    def named(self, name: str) -> tuple[Change, ...]:
        found = [[each for each in self.changes if part in each.name] for part in FOUND[name]]
        assert all(len(each) == 1 for each in found)
        return tuple(each for [each] in found)

    def peaks(self, name: str) -> tuple[int, int]:
        outcome = self.measuring.run(self.named(name))
        assert not outcome.failure
        return outcome.peak_allocated, outcome.peak_reserved


def estimated(kind: type[nn.Module], made: Hand, gpu: str, engine: Any = None) -> tuple[int, int]:
    trained = by_hand(kind, made)
    estimate = vramkit.estimate(trained.model, batch_of(kind), step=trained, gpu=gpu, alloc_conf="", engine=engine)
    return estimate.peak_allocated, estimate.peak_reserved


def measured(kind: str, names: list[str], gpu: str) -> dict[str, tuple[int, int]]:
    """What ``vramkit.profile`` measures of programs that were changed by hand, each as in a fresh process."""
    script = Path(hand.__file__)
    activation = f"from vramkit import virtual_gpu; virtual_gpu.activate({gpu!r}); "
    run = f"import runpy, sys; sys.argv = ['', *sys.argv[1:]]; runpy.run_path({str(script)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", activation + run, *(f"{kind}/{name}" for name in names)],
        capture_output=True,
        text=True,
        check=True,
        env={key: value for key, value in os.environ.items() if not key.endswith("ALLOC_CONF")},
    )
    return {key.partition("/")[2]: tuple(value) for key, value in json.loads(done.stdout).items()}


@pytest.mark.virtual_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_every_variant_has_the_peaks_of_a_program_that_was_changed_by_hand(kind: str) -> None:
    names = NAMES[kind]
    planned = Planned(KINDS[kind], "a100-40gb", "virtual")

    found = {name: planned.peaks(name) for name in names}

    assert found == measured(kind, names, "a100-40gb")
    assert found[names[-1]] == estimated(KINDS[kind], TOGETHER[names[-1]], "a100-40gb")
    assert len({*found.values()}) > len(found) // 2  # they are not all the same program


@pytest.mark.virtual_gpu
def test_state_in_8_bits_is_that_of_the_optimizer_that_a_person_would_take() -> None:
    if why := missing("bitsandbytes"):
        pytest.skip(why)
    import bitsandbytes

    planned = Planned(KINDS["Words"], "a100-40gb", "virtual")

    outcome = planned.measuring.run(tuple(each for each in planned.changes if "8bit" in each.name))

    made = Hand(optimizer=lambda parameters: bitsandbytes.optim.AdamW8bit(parameters))
    assert (outcome.peak_allocated, outcome.peak_reserved) == estimated(KINDS["Words"], made, "a100-40gb")


@pytest.mark.virtual_gpu
def test_on_a_card_without_bfloat16_autocast_is_to_float16_with_a_scaler() -> None:
    planned = Planned(KINDS["Words"], "t4", "virtual")

    found = {name: planned.peaks(name) for name in ON_A_T4}

    assert found == {name: estimated(KINDS["Words"], made, "t4") for name, made in ON_A_T4.items()}
    assert any("below 8.0" in each.reason for each in planned.left_out)
