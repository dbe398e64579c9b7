"""``auto_batch_size`` inside of ranks, real processes, whose cards have not the same room."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vramkit.ranks import Place

pytestmark = pytest.mark.virtual_gpu

SEARCHES = """
import json, os
rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
import vramkit.virtual_gpu
gpu = vramkit.virtual_gpu.activate("2 GiB", count=int(os.environ["LOCAL_WORLD_SIZE"]))
import torch, vramkit
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

torch.cuda.set_device(local)
dist.init_process_group("nccl")

def search(model):
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)

    def step(batch):
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    before = torch.cuda.memory_allocated()
    found = vramkit.auto_batch_size(model, torch.zeros(8, 64, 256, device="cuda"), optimizer=optimizer, step=step,
                                    memory_fraction=1.0, group=dist.group.WORLD)
    left = torch.cuda.memory_allocated() - before
    step(torch.zeros(int(found), 64, 256, device="cuda"))       # every rank is as it was, and trains
    sizes = {trial.batch_size: [trial.fits, trial.peak_reserved] for trial in found.trials}
    return {"size": int(found), "left": left, "capacity": found.capacity, "sizes": sizes}

def layers():
    return torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(6)]).cuda()

if rank == 1:
    gpu.set_memory("1 GiB", local)
result = {"smaller card": search(DistributedDataParallel(layers(), device_ids=[local]))}
torch.cuda.empty_cache()
gpu.set_memory(None, local)
if rank == 1:
    others = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
model = layers()
for layer in model:
    fully_shard(layer)
fully_shard(model)
result["filled card"] = search(model)
print("RESULT" + json.dumps(result))
dist.destroy_process_group()
"""


def test_ranks_find_the_size_that_fits_the_card_with_the_least_room(tmp_path: Path) -> None:
    script = tmp_path / "search.py"
    script.write_text(SEARCHES)

    results = _as_ranks(script, 2)

    for case in ("smaller card", "filled card"):
        first, second = (result[case] for result in results)
        assert first["size"] == second["size"]
        assert [*first["sizes"]] == [*second["sizes"]]
        assert first["left"] == second["left"] == 0
        assert first["capacity"] - first["sizes"][str(first["size"])][1] > 512 * 2**20  # it has room for more
        sizes = {int(size): reserved for size, (fits, reserved) in second["sizes"].items() if fits}
        one, other = sorted(sizes)[-2:]
        row = (sizes[other] - sizes[one]) / (other - one)
        # Segments for large tensors are whole 2 MiB: as many rows as there is room for, but for such steps.
        assert 0 <= second["capacity"] - sizes[first["size"]] < row + 32 * 2**20


def _as_ranks(script: Path, count: int) -> list[Any]:
    """What each rank says, started as torchrun would start them."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    places = [Place(rank=rank, world_size=count, gpus_per_node=count) for rank in range(count)]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **place.environment(port)},
        )
        for place in places
    ]
    ended = [rank.communicate(timeout=300) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * count, ended
    return [json.loads(out.rsplit("RESULT", 1)[1]) for out, _ in ended]
