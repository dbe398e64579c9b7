"""In how many parts a plan takes a batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vramkit import gpus
from vramkit.allocator import AllocatorConf
from vramkit.planning.changes import Family, LeftOut
from vramkit.planning.changes.parts import accumulation
from vramkit.planning.facts import facts_of
from vramkit.programs.arguments import program_of


def offered(rows: int) -> Family | LeftOut:
    program = program_of(
        "A test",
        nn.Linear(4, 4),
        torch.zeros(rows, 4),
        optimizer=torch.optim.SGD,
        step=None,
        loss=None,
        autocast=None,
        steps=3,
    )
    return accumulation(facts_of(program, gpus.find("t4"), rows, AllocatorConf()))


@pytest.mark.parametrize(("rows", "parts"), [(8, [2, 4, 8]), (4096, [2, 4, 8, 16, 32, 64]), (3 * 61, [3, 61])])
def test_a_batch_is_halved_as_it_divides_and_up_to_64_parts(rows: int, parts: list[int]) -> None:
    found = offered(rows)

    assert isinstance(found, Family)
    assert [each.passes for each in found.changes] == parts


@pytest.mark.parametrize("rows", [67, 4099])
def test_a_batch_that_has_no_such_parts_is_left_out_with_the_reason(rows: int) -> None:
    found = offered(rows)

    assert isinstance(found, LeftOut)
    assert f"{rows:,} rows are no 64 equal parts" in found.reason
