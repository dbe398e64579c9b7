"""NCCL on a virtual GPU: collectives among ranks of one process, by their values; and with ranks that are absent."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from subprocesses import run_on

from vramkit.torch_releases import release_of

pytest.importorskip("torch")
import torch
from torch.cuda import nccl
from torch.nn.parallel import comm

pytestmark = pytest.mark.virtual_gpu

_COLLECTIVES = """
import torch, torch.distributed as dist
dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
x = torch.arange(4.0, device="cuda")
like = lambda: torch.full_like(x, -1.0)

def into(call, *arguments, **more):
    out = like()
    call(out, *arguments, **more)
    return out

def listed(call):
    out = [like()]
    call(out)
    return out[0]

def in_place(call, *arguments, **more):
    y = x.clone()
    call(y, *arguments, **more)
    return y

def to_itself():
    out = like()
    for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, x, 0), dist.P2POp(dist.irecv, out, 0)]):
        work.wait()
    return out

def coalesced():
    several = [x.clone() for _ in range(3)]
    with dist._coalescing_manager(device=x.device):
        for each in several:
            dist.all_reduce(each)
    return several[2]

found = {
    "all_reduce": in_place(dist.all_reduce),
    "of the mean": in_place(dist.all_reduce, op=dist.ReduceOp.AVG),
    "of another group": in_place(dist.all_reduce, group=dist.new_group([0])),
    "broadcast": in_place(dist.broadcast, 0),
    "all_gather": listed(lambda out: dist.all_gather(out, x)),
    "into a tensor": into(dist._all_gather_base, x),
    "gather": listed(lambda out: dist.gather(x, out)),
    "scatter": into(dist.scatter, [x]),
    "reduce_scatter": into(dist.reduce_scatter, [x]),
    "from a tensor": into(dist._reduce_scatter_base, x),
    "all_to_all": into(dist.all_to_all_single, x),
    "to itself": to_itself(),
    "coalesced": coalesced(),
}
result = {name: each.tolist() for name, each in found.items()}
result["scaled"] = in_place(dist.all_reduce, op=dist._make_nccl_premul_sum(0.5)).tolist()
objects = [None]
dist.all_gather_object(objects, {"a": [1, 2]})
result["objects"] = objects
result["mask"] = x[into(dist._all_gather_base, x) > 1].tolist()
large = torch.zeros(1 << 20, device="cuda")
dist.all_reduce(large)
dist._all_gather_base(large, large.clone())
result["of what is too large"] = large[large > 0].tolist()
dist.barrier()
dist.destroy_process_group()
"""


def test_collectives_of_one_rank_deliver_what_it_sent() -> None:
    found: dict[str, Any] = run_on("a100-40gb", _COLLECTIVES)

    assert found.pop("scaled") == [0.0, 0.5, 1.0, 1.5]
    assert found.pop("objects") == [{"a": [1, 2]}]
    assert found.pop("mask") == [2.0, 3.0]
    assert found.pop("of what is too large") == []
    for name, numbers in found.items():
        assert numbers == [0.0, 1.0, 2.0, 3.0], name


_WRAPPED = """
import torch, torch.distributed as dist, torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

def sharded(model):
    for each in model:
        fully_shard(each)
    return fully_shard(model)

AdamW = torch.optim.AdamW
WAYS = {
    "plain": (lambda model: model, AdamW),
    "DDP": (DistributedDataParallel, AdamW),
    "FSDP1": (lambda model: FullyShardedDataParallel(model, device_id=0), AdamW),
    "FSDP2": (sharded, AdamW),
    "ZeRO": (DistributedDataParallel, lambda p, lr: ZeroRedundancyOptimizer(p, optimizer_class=AdamW, lr=lr)),
}
dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=torch.device("cuda:0"))
generator = torch.Generator().manual_seed(1)
x = torch.randn(16, 12, generator=generator).cuda()
y = torch.randint(0, 4, (16,), generator=generator).cuda()
result = {}
for name, (wrap, optimize) in WAYS.items():
    torch.manual_seed(0)
    model = wrap(nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 4)).cuda())
    optimizer = optimize(model.parameters(), lr=0.05)
    result[name] = []
    for _ in range(3):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        result[name].append(loss.item())
"""  # it ends without having destroyed the group, as many programs do


def test_data_parallel_programs_on_one_rank_train_as_the_plain_one() -> None:
    losses = run_on("a100-40gb", _WRAPPED)

    plain = losses["plain"]
    assert plain[-1] < plain[0]
    for name, each in losses.items():
        assert each == pytest.approx(plain, rel=1e-5), name


_SHARDED_EVENTS = """
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(3)]).cuda()
for layer in model:
    fully_shard(layer)
fully_shard(model)
optimizer = torch.optim.AdamW(model.parameters())
torch.cuda.memory._record_memory_history("all", context=None, stacks="python")
for _ in range(3):
    model(torch.ones(32, 64, device="cuda")).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
result = [(entry["action"], entry["size"]) for entry in torch.cuda.memory._snapshot()["device_traces"][0]]
"""


def test_no_event_of_a_sharded_program_changes_by_values() -> None:
    none, everything = (run_on("a100-40gb", _SHARDED_EVENTS, values=values) for values in ("none", "all"))

    assert none == everything
    assert len(none) > 100


_MIRRORED = """
import torch, torch.distributed as dist
from datetime import timedelta

class Store(dist.Store):  # in which the other ranks wrote what nobody reads
    def get(self, key): return bytes(128)
    def set(self, key, value): pass
    def add(self, key, amount): return 3
    def check(self, keys): return False
    def wait(self, keys, timeout=None): pass
    def set_timeout(self, timeout): pass

store = Store()
dist.init_process_group("nccl", store=store, rank=1, world_size=3)
number = lambda count: torch.arange(float(count), device="cuda")
made = {}
made["sum"] = number(3); dist.all_reduce(made["sum"])
made["product"] = number(3); dist.all_reduce(made["product"], op=dist.ReduceOp.PRODUCT)
made["mean"] = number(3); dist.all_reduce(made["mean"], op=dist.ReduceOp.AVG)
made["count"] = torch.tensor([7], device="cuda"); dist.all_reduce(made["count"])
made["from an absent root"] = number(3); dist.broadcast(made["from an absent root"], 0)
made["gathered"] = number(6) - 9; dist._all_gather_base(made["gathered"], number(2))
made["scattered"] = number(2) - 9; dist._reduce_scatter_base(made["scattered"], number(6))
made["exchanged"] = number(6) - 9; dist.all_to_all_single(made["exchanged"], number(6))
parts = list(number(3).split(1))
made["exchanged as parts"] = number(3) - 9
dist.all_to_all(list(made["exchanged as parts"].split(1)), parts)
made["exchanged in shares"] = number(5) - 9  # of each rank 1, 2 and 2 to this one, from this one as many
dist.all_to_all_single(made["exchanged in shares"], number(5), [1, 2, 2], [1, 2, 2])
made["in a ring"], ring = number(4) - 9, [(number(2), 0), (number(2) + 5, 2)]
received = [dist.P2POp(dist.irecv, part, peer) for part, peer in zip(made["in a ring"].split(2), (2, 0))]
for work in dist.batch_isend_irecv([*received, *[dist.P2POp(dist.isend, *each) for each in ring]]):
    work.wait()
made["only from others"] = number(2)
for work in dist.batch_isend_irecv([dist.P2POp(dist.irecv, made["only from others"], 2)]):
    work.wait()
dist.send(number(3), 0)
made["received"] = number(3); dist.recv(made["received"], 2)
group = dist.new_group([1, 2])
made["in a part"] = number(4) - 9; dist._all_gather_base(made["in a part"], number(2), group=group)
result = {name: each.tolist() for name, each in made.items()}
result["communicators"] = gpu.communicators
"""


def test_absent_ranks_send_what_this_one_sends() -> None:
    # NCCL's monitor looks into the store, which is Python's, also when Python has ended.
    found = run_on("a100-40gb", _MIRRORED, environment={"TORCH_NCCL_DUMP_ON_TIMEOUT": "0"})

    assert found == {
        "sum": [0, 3, 6],
        "product": [0, 1, 8],
        "mean": [0, 1, 2],
        "count": [21],
        "from an absent root": [0, 1, 2],
        "gathered": [0, 1, 0, 1, 0, 1],
        "scattered": [6, 9],
        "exchanged": [2, 3, 2, 3, 2, 3],
        "exchanged as parts": [1, 1, 1],
        "exchanged in shares": [0, 1, 2, 1, 2],
        "in a ring": [5, 6, 0, 1],
        "only from others": [0, 1],
        "received": [0, 1, 2],
        "in a part": [0, 1, 0, 1],
        "communicators": found["communicators"],
    }
    assert found["communicators"] >= 2


_COUNTING = """
int ncclCommMemStats(void *communicator, int what, unsigned long *bytes) {
  *bytes = communicator && what == 3 ? 300ul << 20 : 1; /* 3: in all */
  return 0;
}
"""
_ASKED = """
import torch, torch.distributed as dist, vramkit
from dataclasses import asdict
import vramkit.profiling.cuda as measured
from vramkit.torch_internals.nccl import nccl_on
result = {"without groups": nccl_on(0)}
dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
group = dist.new_group([0])
result["without communicators"] = nccl_on(0)
dist.all_reduce(torch.ones(4, device="cuda"))
dist.all_reduce(torch.ones(4, device="cuda"), group=group)
measured.current = lambda: None           # as on a real card
with vramkit.profile() as profile:
    torch.ones(4, device="cuda")
result["asked"] = asdict(profile.result.nccl)
result["version"] = torch.__version__
dist.destroy_process_group()
"""


def test_nccl_is_asked_what_its_communicators_have(tmp_path: Path) -> None:
    source, library = tmp_path / "counting.c", tmp_path / "counting.so"
    source.write_text(_COUNTING)
    subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-o", library, source], check=True)

    found = run_on("h100", _ASKED, environment={"LD_PRELOAD": str(library)})

    asks = release_of(found["version"]) >= (2, 14)  # before, torch does not
    assert found["without groups"] is None
    assert found["without communicators"] is None
    assert found["asked"] == {"communicators": 2, "size": 2 * 300 * 2**20 if asks else None}


@pytest.mark.parametrize(
    "kind", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8]
)
def test_two_devices_of_one_process_reduce_every_type(kind: torch.dtype) -> None:
    first, second = torch.tensor([1.5, 3, 7, 0.1]).to(kind), torch.tensor([1.5, 0.1, 9, 1e-3]).to(kind)
    there = [first.to("cuda:0"), second.to("cuda:1")]

    nccl.all_reduce(there)

    for each in there:
        assert torch.equal(each.cpu(), first + second)


def test_two_devices_broadcast_and_add_as_data_parallel_does() -> None:
    x = torch.arange(3.0, device="cuda:0")

    copies = comm.broadcast_coalesced([x, x + 1], [0, 1])
    total = comm.reduce_add([x, x.to("cuda:1") * 2], 0)

    assert [[each.device.index for each in row] for row in copies] == [[0, 0], [1, 1]]
    assert total.shape == (3,)
