"""What a rank of a large job needs, and what it costs to find out: one process plays it, from its start to its report.

    python benchmarks/bench_large_jobs.py [--gpu h100] [--only 8B-64 ...]

A row says what the rank came to, and what that took here: seconds, those in which it had a core, and memory. The models
have the shapes of Llama 3 and are made without weights; a step is the whole of a training's: forward, backward, AdamW.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """A model, and how it is spread."""

    ranks: int
    width: int
    layers: int
    heads: int
    hidden: int
    tensor: int = 1
    """Ranks that share a layer, by tensor parallelism."""
    rows: int = 1
    length: int = 8192
    vocabulary: int = 128256
    groups: int = 8
    """Heads of keys and values."""


JOBS = {
    "8B-64": Job(ranks=64, width=4096, layers=32, heads=32, hidden=14336),
    "8B-1024": Job(ranks=1024, width=4096, layers=32, heads=32, hidden=14336),
    "70B-256": Job(ranks=256, width=8192, layers=80, heads=64, hidden=28672),
    "70B-TP8-FSDP32": Job(ranks=256, width=8192, layers=80, heads=64, hidden=28672, tensor=8),
}


def main() -> int:
    """Print a row for each job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=JOBS, default=[*JOBS])
    parser.add_argument("--train", choices=JOBS, help="be the program of a job, in a process of it")
    options = parser.parse_args()
    if options.train is not None:
        train(JOBS[options.train], options.steps)
        return 0
    print(f"{'job':<16}       allocated        reserved  seconds  of cores   memory here")
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            document = Path(folder, "run.json")
            began, before = time.monotonic(), _of_cores()
            command = [sys.executable, "-m", "vramkit", "run", "--gpu", options.gpu, "--world-size"]
            command += [str(JOBS[name].ranks), "--json", str(document), __file__, "--train", name]
            done = subprocess.run([*command, "--steps", str(options.steps)], capture_output=True, text=True)
            seconds, of_cores = time.monotonic() - began, _of_cores() - before
            if done.returncode:
                raise SystemExit(f"{name}:\n{done.stderr}")
            [device] = json.loads(document.read_text())["processes"][0]["result"]["devices"]
        own = done.stdout.rpartition("MEMORY ")[2].strip()
        sizes = f"{device['peak_allocated']:>16,}{device['peak_reserved']:>16,}"
        print(f"{name:<16}{sizes}{seconds:>9.0f}{of_cores:>10.0f}{int(own) / 2**20:>10,.0f} MiB", flush=True)
    return 0


def _of_cores() -> float:
    """Seconds that processes which have ended took of the machine's cores."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def train(job: Job, steps: int) -> None:
    """The program: FSDP2 in bfloat16, with a checkpoint for each layer, and with tensor parallelism where asked for."""
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )
    from torch.utils.checkpoint import checkpoint

    head = job.width // job.heads

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Linear(job.width, job.width, bias=False)
            self.key = nn.Linear(job.width, job.groups * head, bias=False)
            self.value = nn.Linear(job.width, job.groups * head, bias=False)
            self.out = nn.Linear(job.width, job.width, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows, length, _ = x.shape
            query, key, value = (
                layer(x).view(rows, length, -1, head).transpose(1, 2) for layer in (self.query, self.key, self.value)
            )
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
            return self.out(mixed.transpose(1, 2).reshape(rows, length, -1))

    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(job.width, job.hidden, bias=False)
            self.up = nn.Linear(job.width, job.hidden, bias=False)
            self.down = nn.Linear(job.hidden, job.width, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(F.silu(self.gate(x)) * self.up(x))

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_norm, self.attention = nn.RMSNorm(job.width), Attention()
            self.mlp_norm, self.mlp = nn.RMSNorm(job.width), Mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.inside, x, use_reentrant=False)

        def inside(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.attention(self.attention_norm(x))
            return x + self.mlp(self.mlp_norm(x))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(job.vocabulary, job.width)
            self.layers = nn.ModuleList(Layer() for _ in range(job.layers))
            self.norm = nn.RMSNorm(job.width)
            self.head = nn.Linear(job.width, job.vocabulary, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.embed(x)
            for layer in self.layers:
                h = layer(h)
            return self.head(self.norm(h))

    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    whole = init_device_mesh("cuda", (job.ranks // job.tensor, job.tensor), mesh_dim_names=("shard", "tensor"))
    with torch.device("meta"):
        model = Model()
    if job.tensor > 1:
        plan = {
            "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
            "norm": SequenceParallel(),
            "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
        }
        parallelize_module(model, whole["tensor"], plan)
        plan = {
            "attention_norm": SequenceParallel(),
            "mlp_norm": SequenceParallel(),
            "attention": PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate()),
            "mlp": PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate()),
            **{f"attention.{name}": ColwiseParallel() for name in ("query", "key", "value")},
            "attention.out": RowwiseParallel(output_layouts=Shard(1)),
            **{f"mlp.{name}": ColwiseParallel() for name in ("gate", "up")},
            "mlp.down": RowwiseParallel(output_layouts=Shard(1)),
        }
        for layer in model.layers:
            parallelize_module(layer, whole["tensor"], plan)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.layers:
        fully_shard(layer, mesh=whole["shard"], mp_policy=policy)
    fully_shard(model, mesh=whole["shard"], mp_policy=policy)
    model.to_empty(device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(steps):
        x = torch.zeros(job.rows, job.length, dtype=torch.int64, device="cuda")
        F.cross_entropy(model(x).flatten(0, 1).float(), x.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"MEMORY {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
