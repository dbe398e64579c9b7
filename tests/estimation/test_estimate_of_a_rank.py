"""A prediction of a rank of a distributed job: its own part of what a function shards."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
from torch import nn

import vramkit
from vramkit.errors import UsageError

WIDTH = 64
ROWS = 9
"""Of the weight that is sharded among 4 ranks: 3, 3, 3 and none."""


def shards() -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    assert torch.cuda.current_device() == int(os.environ["LOCAL_RANK"])
    dist.init_process_group("nccl")
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(WIDTH, ROWS, bias=False))
    fully_shard(model)
    return model.to_empty(device="cuda")


@pytest.mark.virtual_gpu
def test_each_rank_has_its_own_shard() -> None:
    first, last = (
        vramkit.estimate(
            shards,
            torch.zeros(2, WIDTH),
            optimizer=torch.optim.SGD,
            steps=1,
            world_size=4,
            rank=rank,
            gpus_per_node=2,
            gpu="t4",
        )
        for rank in (1, 3)
    )

    assert first.device == last.device == "cuda:1"
    assert first.peak.parameters == 3 * WIDTH * 4
    assert last.peak.parameters < first.peak.parameters
    assert first.fits()
    assert first.at(4).batch_size == 4
    assert any("Rank 3 of 4 was played alone" in note for note in last.notes)


def test_what_no_job_has_is_refused() -> None:
    model = nn.Linear(2, 2)

    with pytest.raises(UsageError, match=r"(?i)fake tensors have no process group"):
        vramkit.estimate(model, torch.zeros(1, 2), world_size=2, engine="fake")
    with pytest.raises(UsageError, match="world_size=64"):
        vramkit.estimate(model, torch.zeros(1, 2), rank=1)
    with pytest.raises(UsageError, match="Ranks are 0 to 1"):
        vramkit.estimate(model, torch.zeros(1, 2), rank=2, world_size=2)
    with pytest.raises(UsageError):
        vramkit.estimate(lambda: model, torch.zeros(1, 2))  # type: ignore[arg-type] # a function, of no job
