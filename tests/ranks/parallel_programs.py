"""Every way of training on several GPUs: a rank runs them one after another, and prints what each came to.

To be run by ``vramkit run`` with ranks. Arguments: ``--large`` for a model of 0.1 billion parameters instead of a tiny
one, and the names, none for all that two ranks can do.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Size:
    """Of the model and its batches."""

    width: int
    blocks: int
    vocabulary: int
    rows: int
    length: int
    bucket: float
    """MB of DDP's buckets."""


SIZES = {False: Size(96, 3, 252, 33, 32, 0.2), True: Size(768, 6, 32000, 4, 512, 25)}
SIZE = SIZES["--large" in sys.argv]


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.checkpoints = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.checkpoints:
            return x + checkpoint(self.mlp, x, use_reentrant=False)
        return x + self.mlp(x)

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(SIZE.vocabulary, SIZE.width)
        self.blocks = nn.ModuleList(Block(SIZE.width) for _ in range(SIZE.blocks))
        self.head = nn.Linear(SIZE.width, SIZE.vocabulary)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        return self.head(h) + 0  # FSDP warns of views


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    clip: Callable[[], object] | None = None,
    no_sync: Callable[[], contextlib.AbstractContextManager[object]] | None = None,
) -> None:
    for _ in range(3):
        for micro in range(1 if no_sync is None else 2):
            with no_sync() if no_sync is not None and micro == 0 else contextlib.nullcontext():
                x = torch.randint(0, SIZE.vocabulary, (SIZE.rows, SIZE.length)).cuda()
                F.cross_entropy(model(x).flatten(0, 1), x.flatten()).backward()
        if clip is not None:
            clip()
        optimizer.step()
        optimizer.zero_grad()
        total = torch.ones((), device="cuda")
        dist.all_reduce(total)
        assert total.item() == dist.get_world_size()


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def ddp(*, hook: bool = False, zero: bool = False, no_sync: bool = False, **options: object) -> None:
    model = DistributedDataParallel(Net().cuda(), bucket_cap_mb=SIZE.bucket, **options)
    if hook:
        model.register_comm_hook(None, bf16_compress_hook)
    if zero:
        optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.AdamW, lr=1e-3)
    else:
        optimizer = adamw(model)
    train(model, optimizer, no_sync=model.no_sync if no_sync else None)


def fsdp2(
    *,
    mesh: DeviceMesh | None = None,
    bf16: bool = False,
    reshards: bool = True,
    offloads: bool = False,
    checkpoints: bool = False,
    clips: bool = False,
    accumulates: bool = False,
) -> None:
    options: dict[str, object] = {"mesh": mesh, "reshard_after_forward": reshards}
    if bf16:
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if offloads:
        options["offload_policy"] = CPUOffloadPolicy()
    with torch.device("meta"):
        model = Net()
    for block in model.blocks:
        block.checkpoints = checkpoints
        fully_shard(block, **options)
    fully_shard(model, **options)
    model.to_empty(device="cpu" if offloads else "cuda")
    clip = functools.partial(nn.utils.clip_grad_norm_, list(model.parameters()), 1.0) if clips else None
    train(model, adamw(model), clip=clip, no_sync=functools.partial(_kept_whole, model) if accumulates else None)


@contextlib.contextmanager
def _kept_whole(model: Any) -> Iterator[None]:
    """Parameters and gradients stay whole after a backward."""
    for flag in (False, True):
        model.set_requires_gradient_sync(flag)
        model.set_reshard_after_backward(flag)
        if not flag:
            yield


def hsdp(*, shards: int = 1) -> None:
    shape = (dist.get_world_size() // shards, shards)
    fsdp2(mesh=init_device_mesh("cuda", shape, mesh_dim_names=("replicate", "shard")), bf16=True)


def fsdp1() -> None:
    model = FullyShardedDataParallel(
        Net(),
        auto_wrap_policy=functools.partial(transformer_auto_wrap_policy, transformer_layer_cls={Block}),
        mixed_precision=MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
        device_id=torch.cuda.current_device(),
        use_orig_params=True,
        sync_module_states=True,
    )
    train(model, adamw(model), clip=functools.partial(model.clip_grad_norm_, 1.0))


def tensor_parallel(*, sequence: bool = False, shards: int = 1) -> None:
    shape = (shards, dist.get_world_size() // shards)
    whole = init_device_mesh("cuda", shape, mesh_dim_names=("shard", "tensor"))
    mesh = whole["tensor"]
    model = Net().cuda()
    rows = Shard(1) if sequence else Replicate()
    parallelize_module(
        model,
        mesh,
        {
            "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=rows),
            "head": ColwiseParallel(input_layouts=rows, output_layouts=Replicate()),
        },
    )
    for block in model.blocks:
        plan = {"up": ColwiseParallel(input_layouts=Replicate()), "down": RowwiseParallel(output_layouts=rows)}
        if sequence:
            plan |= {"norm": SequenceParallel(), "up": ColwiseParallel(input_layouts=rows)}
        parallelize_module(block, mesh, plan)
        if shards > 1:
            fully_shard(block, mesh=whole["shard"])
    if shards > 1:
        fully_shard(model, mesh=whole["shard"])
    train(model, torch.optim.AdamW(model.parameters(), foreach=False))  # some of them are no distributed tensors


class Part(nn.Module):
    """A stage of a pipeline: the first has the embedding and the last the head."""

    def __init__(self, number: int, parts: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(SIZE.vocabulary, SIZE.width) if number == 0 else None
        self.block = Block(SIZE.width)
        self.head = nn.Linear(SIZE.width, SIZE.vocabulary) if number == parts - 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.block(x if self.embed is None else self.embed(x))
        return h if self.head is None else self.head(h)


def _loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def pipeline(make: Callable[..., Any], *, each: int = 1, tells: bool = False, shards: int = 1) -> None:
    """Stages on ranks that are ``shards`` apart.

    ``each``: stages of a rank. ``tells``: the program says what stages exchange, so that they need not ask each other.
    """
    shape = (dist.get_world_size() // shards, shards)
    mesh = init_device_mesh("cuda", shape, mesh_dim_names=("stage", "shard"))
    me, ranks = mesh["stage"].get_local_rank(), shape[0]
    parts, rows, micro = ranks * each, 2 * ranks * (SIZE.rows // (2 * ranks)), 2 * ranks
    x = torch.randint(0, SIZE.vocabulary, (rows, SIZE.length)).cuda()
    with torch.device("meta"):
        hidden = torch.zeros(rows // micro, SIZE.length, SIZE.width, requires_grad=True)
        logits = torch.zeros(rows // micro, SIZE.length, SIZE.vocabulary)
        first = torch.zeros(rows // micro, SIZE.length, dtype=torch.int64)
    stages = []
    for number in range(me, parts, ranks):
        part = Part(number, parts).cuda()
        if shards > 1:
            fully_shard(part, mesh=mesh["shard"])
        shapes = {"input_args": hidden if number else first, "output_args": hidden if number < parts - 1 else logits}
        told = {name: (value,) for name, value in shapes.items()} if tells else {}
        group = mesh["stage"].get_group()
        stages.append(PipelineStage(part, number, parts, torch.device("cuda"), group=group, **told))
    schedule = make(stages if each > 1 else stages[0], micro, loss_fn=_loss)
    optimizers = [adamw(stage.submod) for stage in stages]
    for _ in range(3):
        schedule.step(*[x] * (me == 0), **({"target": x, "losses": []} if me == ranks - 1 else {}))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def checkpoints() -> None:
    """A distributed checkpoint is saved and loaded, in a folder that the environment names."""
    model = Net().cuda()
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    optimizer = adamw(model)
    train(model, optimizer)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    dcp.save(state, checkpoint_id=os.environ["CHECKPOINTS"])
    dcp.load(state, checkpoint_id=os.environ["CHECKPOINTS"])
    train(model, optimizer)


def objects() -> None:
    """Objects on the device, as a group of NCCL alone has them."""
    group = dist.new_group(backend="nccl")
    everybody: list[object] = [None] * dist.get_world_size()
    for number in range(150):
        dist.all_gather_object(everybody, {"text": "x" * 1000 * number}, group=group)
        assert everybody == [{"text": "x" * 1000 * number}] * dist.get_world_size()


def compiled(backend: str) -> None:
    """Each block has a checkpoint, is compiled, and sharded: three things that are wrapped around it."""
    model = Net().cuda()
    for number, block in enumerate(model.blocks):
        model.blocks[number] = fully_shard(torch.compile(checkpoint_wrapper(block), backend=backend))
    fully_shard(model)
    train(model, adamw(model))


STRATEGIES: dict[str, Callable[[], None]] = {
    "DDP": ddp,
    "DDP, bucket views": functools.partial(ddp, gradient_as_bucket_view=True),
    "DDP, static graph": functools.partial(ddp, static_graph=True),
    "DDP, no_sync": functools.partial(ddp, no_sync=True),
    "DDP, bf16 hook": functools.partial(ddp, hook=True),
    "ZeRO-1": functools.partial(ddp, zero=True),
    "FSDP2": fsdp2,
    "FSDP2, bf16": functools.partial(fsdp2, bf16=True),
    "FSDP2, no reshard": functools.partial(fsdp2, reshards=False),
    "FSDP2, CPU offload": functools.partial(fsdp2, offloads=True),
    "FSDP2, checkpoints, clipping": functools.partial(fsdp2, checkpoints=True, clips=True),
    "FSDP2, accumulation": functools.partial(fsdp2, accumulates=True),
    "HSDP": hsdp,
    "FSDP1": fsdp1,
    "TP": tensor_parallel,
    "TP, sequence": functools.partial(tensor_parallel, sequence=True),
    "FSDP2, compiled": functools.partial(compiled, "aot_eager"),
    "Checkpoints": checkpoints,
    "Objects": objects,
}

BY_INDUCTOR = {"FSDP2, Inductor": functools.partial(compiled, "inductor")}
"""Takes a minute where Inductor has compiled nothing yet."""

OF_STAGES = {
    "GPipe": functools.partial(pipeline, ScheduleGPipe, tells=True),
    "1F1B": functools.partial(pipeline, Schedule1F1B, tells=True),
    "1F1B, shapes asked": functools.partial(pipeline, Schedule1F1B),
    "Interleaved": functools.partial(pipeline, ScheduleInterleaved1F1B, each=2, tells=True),
}
"""Where ranks differ. Only the first stage's can be alone, and only where shapes need not be asked for."""

OF_FOUR = {
    "HSDP, 2 x 2": functools.partial(hsdp, shards=2),
    "FSDP2 and TP, 2 x 2": functools.partial(tensor_parallel, shards=2),
    "FSDP2 and TP, sequence, 2 x 2": functools.partial(tensor_parallel, sequence=True, shards=2),
    "GPipe and FSDP2, 2 x 2": functools.partial(pipeline, ScheduleGPipe, tells=True, shards=2),
    "1F1B and FSDP2, 2 x 2": functools.partial(pipeline, Schedule1F1B, tells=True, shards=2),
    "Interleaved and FSDP2, 2 x 2": functools.partial(pipeline, ScheduleInterleaved1F1B, each=2, tells=True, shards=2),
    "1F1B, shapes asked, 2 x 2": functools.partial(pipeline, Schedule1F1B, shards=2),
}
"""What takes four ranks."""


def main(programs: dict[str, Callable[[], None]]) -> None:
    """Run those that are named, or all; say after how many allocations each began, and what it came to."""
    device = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl")
    gc.disable()  # when Python lets go of a cycle, such as DDP's, depends on all that it did
    names = [name for name in sys.argv[1:] if name != "--large"] or programs
    ends = {"the end": lambda: torch.ones(1, device="cuda")}
    for name in [*names, *ends]:
        gc.collect()
        torch.cuda.empty_cache()
        torch.manual_seed(0)
        torch.cuda.reset_peak_memory_stats()
        first = torch.cuda.memory_stats()["allocation.all.allocated"]
        {**STRATEGIES, **BY_INDUCTOR, **OF_STAGES, **OF_FOUR, **programs, **ends}[name]()
        peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        row = {"rank": dist.get_rank(), "name": name, "first": first, "peak": peak, "reserved": reserved}
        print(f"ROW {json.dumps(row)}\n", end="", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(STRATEGIES)
