"""A program that is made data-parallel is the one in which a person has written that."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vramkit

ROWS = torch.zeros(16, 32, dtype=torch.int64)
SIXTEEN = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(500, 64)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(64, 500)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        return self.head(h)


def loss(output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.flatten(0, 1), x.flatten())


def sharded_by_hand() -> nn.Module:
    from torch.distributed import init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    init_process_group("nccl")
    mesh = init_device_mesh("cuda", (2, 4), mesh_dim_names=("replicate", "shard"))
    model, policy = Net(), MixedPrecisionPolicy(**SIXTEEN)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def replicated_by_hand() -> nn.Module:
    from torch.distributed import init_process_group

    init_process_group("nccl")
    local = int(os.environ["LOCAL_RANK"])
    return nn.parallel.DistributedDataParallel(Net().to("cuda"), device_ids=[local], static_graph=True)


def predicted(model: Any, **options: Any) -> vramkit.Estimate:
    options = {"gpu": "4 GiB", "loss": loss, "optimizer": torch.optim.AdamW, **options}
    return vramkit.estimate(model, ROWS, **options)


@pytest.mark.virtual_gpu
@pytest.mark.parametrize(
    ("parallel", "by_hand"),
    [
        (vramkit.FSDP(8, replicas=2, **SIXTEEN), sharded_by_hand),
        (vramkit.DDP(8, static_graph=True), replicated_by_hand),
    ],
    ids=["FSDP", "DDP"],
)
def test_it_has_the_events_of_a_script_that_sets_it_up(parallel: vramkit.Parallel, by_hand: Any) -> None:
    short, long = predicted(Net(), parallel=parallel, rank=5), predicted(by_hand, world_size=8, rank=5)

    names = ["action", "size", "address"]
    assert len(short.tape.events) > 300
    assert np.array_equal(short.tape.events[names], long.tape.events[names])


@pytest.mark.virtual_gpu
def test_what_does_not_fit_a_rank_is_predicted_and_the_largest_batch_is_found() -> None:
    parallel = vramkit.FSDP(8)
    expands = {"parallel": parallel, "alloc_conf": "expandable_segments:True"}
    small, large = predicted(Net(), gpu="70 MiB", **expands), predicted(Net(), **expands)
    found = vramkit.auto_batch_size(
        Net(), ROWS, optimizer=torch.optim.AdamW, loss=loss, parallel=parallel, gpu="4 GiB", max_batch_size=4
    )

    assert not small.fits()
    assert small.peak_reserved == large.peak_reserved
    tried = {trial.batch_size: trial.peak_reserved for trial in found.trials}
    assert tried[4] == predicted(Net(), parallel=parallel, batch_size=4).peak_reserved


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"parallel": 8}, r"Give vramkit\.FSDP\(8\)"),
        ({"parallel": vramkit.DDP(8), "world_size": 4}, "Leave world_size out"),
        ({"parallel": vramkit.FSDP(8), "rank": 8}, "Ranks are 0 to 7"),
        (
            {"parallel": vramkit.FSDP(8), "step": print, "loss": None, "optimizer": None},
            "written for the model as it is",
        ),
        ({"parallel": vramkit.FSDP(8), "optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))])}, "Pass what makes"),
        ({"parallel": vramkit.FSDP(8), "engine": "fake"}, "no process group"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(vramkit.UsageError, match=said):
        predicted(Net(), **options)


def test_replicas_have_equally_many_ranks() -> None:
    with pytest.raises(vramkit.UsageError, match="as many ranks"):
        vramkit.FSDP(8, replicas=3)
    with pytest.raises(vramkit.UsageError, match="world_size"):
        vramkit.DDP(0)
