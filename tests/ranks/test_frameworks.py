"""Frameworks that set up ranks by themselves, as far as they are installed: rank 0 alone is rank 0 of two processes."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from frameworks import missing
from played import SCRIPT, Played, play

pytestmark = pytest.mark.virtual_gpu
NAMES = {
    "accelerate, FSDP2": "accelerate",
    "transformers' Trainer": "transformers",
    "Lightning, ddp": "lightning",
    "Lightning, fsdp": "lightning",
    "DeepSpeed, ZeRO-1": "deepspeed",
    "DeepSpeed, ZeRO-2": "deepspeed",
    "DeepSpeed, ZeRO-3": "deepspeed",
}
UNORDERED = "DeepSpeed, ZeRO-3"  # goes through sets, which Python orders by addresses


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Played, Played]:
    if not any(map(importlib.util.find_spec, NAMES.values())):
        pytest.skip("no framework is installed")
    ways = ("--rank", "0"), ("--ranks", "all")
    script = SCRIPT.with_name("framework_programs.py")
    one, many = (play(tmp_path_factory.mktemp("ranks"), 2, *way, script=script)[0] for way in ways)
    return one, many


@pytest.mark.parametrize("name", NAMES)
def test_a_rank_alone_has_the_events_of_one_among_processes(name: str, both: tuple[Played, Played]) -> None:
    package = NAMES[name]
    why = missing(package) if package != "deepspeed" else "" if importlib.util.find_spec(package) else "no DeepSpeed"
    if why:
        pytest.skip(why)
    one, many = both

    assert one.rows[name]["peak"] == many.rows[name]["peak"]
    assert len(one.events(name)) > 200
    if name != UNORDERED:
        assert np.array_equal(one.events(name), many.events(name))
