"""A prediction of a rank of a distributed job: its own part of what a function shards."""

from __future__ import annotations

import dataclasses
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


def skewed() -> nn.Module:
    """A model of which rank 2 has the largest part."""
    dist.init_process_group("nccl")
    return nn.Linear(WIDTH, 4096 * (1 + dist.get_rank() % 3)).cuda()


@pytest.mark.virtual_gpu
def test_of_several_ranks_the_one_that_takes_most_decides() -> None:
    rows, job = torch.zeros(64, WIDTH), {"optimizer": torch.optim.SGD, "steps": 1, "world_size": 4, "gpu": "t4"}
    first, fullest = (vramkit.estimate(skewed, rows, rank=rank, **job) for rank in (0, 2))
    middle = (first.peak_reserved + fullest.peak_reserved) // 2
    card = dataclasses.replace(fullest.gpu, name="small", memory=middle + fullest.gpu.context)

    both = vramkit.estimate(skewed, rows, rank=[2, 0], **job)

    assert (both.peak_reserved, both.device) == (fullest.peak_reserved, "cuda:2")
    assert any("this is the fullest, rank 2" in note and "rank 0: " in note for note in both.notes)
    assert [each.fits(card) for each in (first, fullest, both)] == [True, False, False]
    assert both.batch_sizes([1, 64]) == fullest.batch_sizes([1, 64])


@pytest.mark.virtual_gpu
def test_batch_sizes_and_plans_are_those_of_the_rank_that_takes_most() -> None:
    model, rows = nn.Linear(1, 1), torch.zeros(512, 1)

    def step(batch: torch.Tensor) -> None:
        assert model(batch).is_cuda
        torch.empty(4096 * (1 + int(os.environ["RANK"])), len(batch), device="cuda")

    job = {"step": step, "steps": 1, "world_size": 2, "gpu": "t4"}
    alone = vramkit.estimate(model, rows, rank=1, **job)

    found = vramkit.auto_batch_size(model, rows, rank=[0, 1], min_batch_size=512, max_batch_size=512, **job)
    plan = vramkit.plan(model, rows, rank=[0, 1], **job)

    assert {(each.batch_size, each.peak_reserved) for each in found.trials} == {(512, alone.peak_reserved)}
    assert plan.variants[0].peak_allocated == alone.peak_allocated


def test_what_no_job_has_is_refused() -> None:
    model = nn.Linear(2, 2)

    with pytest.raises(UsageError, match=r"(?i)fake tensors have no process group"):
        vramkit.estimate(model, torch.zeros(1, 2), world_size=2, engine="fake")
    with pytest.raises(UsageError, match="world_size=64"):
        vramkit.estimate(model, torch.zeros(1, 2), rank=1)
    with pytest.raises(UsageError, match="Ranks are 0 to 1"):
        vramkit.estimate(model, torch.zeros(1, 2), rank=2, world_size=2)
    with pytest.raises(UsageError):
        vramkit.estimate(model, torch.zeros(1, 2), rank=[], world_size=2)
    with pytest.raises(UsageError, match=r"parallel=vramkit\.FSDP"):
        vramkit.plan(lambda: model, torch.zeros(1, 2), world_size=2)  # type: ignore[arg-type] # a function
    with pytest.raises(UsageError):
        vramkit.estimate(lambda: model, torch.zeros(1, 2))  # type: ignore[arg-type] # a function, of no job
