"""The tape diff: alignment of two tapes, and the tool around it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from vramkit.devtools import tapediff
from vramkit.errors import UsageError
from vramkit.tape.events import ALLOCATION, EVENT, Action, Module, Phase, Tape


def tape(*sizes: int, module: str = "Net.layers.3") -> Tape:
    """A tape of one phase: a size above 0 comes, one below goes."""
    events = np.zeros(len(sizes), EVENT)
    events["size"] = np.abs(sizes)
    events["action"] = [Action.ALLOC if size > 0 else Action.FREE for size in sizes]
    events["phase"] = Phase.BACKWARD
    return Tape(events=events, allocations=np.zeros(0, ALLOCATION), modules=(Module(name=module, kind="Linear"),))


def test_the_same_events_have_no_differences() -> None:
    assert tapediff.differences(tape(8, 16, -8), tape(8, 16, -8), ["mm"] * 3) == {}


def test_what_goes_back_at_one_moment_may_go_in_any_order() -> None:
    assert tapediff.differences(tape(8, 16, -8, -16), tape(8, 16, -16, -8), ["mm"] * 4) == {}


def test_what_only_one_tape_has_is_told_with_operator_and_module() -> None:
    found = tapediff.differences(tape(8, 512, -512, 16), tape(8, 16), ["mm", "sum"])

    [(difference, count)] = found.items()
    assert count == 1
    assert (difference.real, difference.fake) == ((512, -512), ())
    assert (difference.after, difference.before) == ("mm", "sum")
    assert difference.module == "Net.layers.*"
    assert "backward of Net.layers.*, mm | sum" in str(difference)


def test_equal_differences_are_one_class() -> None:
    found = tapediff.differences(tape(8, 512, -512, 8, 512, -512, 8), tape(8, 8, 8), ["mm"] * 3)

    assert list(found.values()) == [2]


@pytest.mark.parametrize("address", ["nowhere:program", "workloads:nothing", "workloads:WORKLOADS[nothing]"])
def test_a_program_that_is_not_there_is_told(address: str) -> None:
    with pytest.raises(UsageError, match=r"nowhere|nothing"):
        tapediff.program_at(address)


def program() -> dict[str, Any]:
    return {"model": torch.nn.Linear(64, 10), "batch": torch.zeros(8, 64), "optimizer": torch.optim.SGD}


@pytest.mark.virtual_gpu
def test_the_tool_says_how_many_differences_a_program_has(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])

    status = tapediff.main(["test_tapediff:program"])

    assert status == 0
    assert "0 differences in 0 classes" in capsys.readouterr().out
