"""A program that writes torch's snapshots of several kinds, in one fresh process, and prints torch's own figures.

Run as ``python making.py FOLDER``; the printed JSON has, for each file, what torch's counters said when it was written.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import vramkit.virtual_gpu

os.environ["TORCH_DISABLE_ADDR2LINE"] = "1"  # older torches look every frame of C++ up with it, for minutes
vramkit.virtual_gpu.activate("t4")

import torch  # noqa: E402
from torch import nn  # noqa: E402

LOGITS = (32_768, 65)  # in float32 as large as cuBLAS's workspace
record = torch.cuda.memory._record_memory_history


def step(model: nn.Module, optimizer: torch.optim.Optimizer, rows: int) -> None:
    loss = model(torch.zeros(rows, 512, device="cuda")).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def main(folder: Path) -> None:
    figures = {}

    def dump(name: str, written: object = None) -> None:
        path = folder / f"{name}.pickle"
        if written is None:
            torch.cuda.memory._dump_snapshot(str(path))
        else:
            path.write_bytes(pickle.dumps(written))
        figures[name] = {
            "allocated": torch.cuda.memory_allocated(),
            "most_allocated": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.memory_reserved(),
            "most_reserved": torch.cuda.max_memory_reserved(),
            "free": torch.cuda.mem_get_info()[0],
        }

    record(max_entries=100_000)
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512)).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    logits = torch.zeros(LOGITS, device="cuda")
    step(model, optimizer, 50_000)
    step(model, optimizer, 2048)
    dump("whole")
    record(None)
    dump("none")
    dump("list", torch.cuda.memory_snapshot())
    record(max_entries=100_000, stacks="python")
    step(model, optimizer, 2048)
    dump("late")
    record(None)
    record(max_entries=30)
    step(model, optimizer, 2048)
    dump("lost")
    record(None)
    record("state", stacks="python")
    state = torch.zeros(1000, 1000, device="cuda")
    dump("state")
    record(max_entries=100_000, stacks="python")
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        pooled = torch.zeros(3 << 20, dtype=torch.uint8, device="cuda")
    try:
        torch.zeros(1 << 40, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError:
        dump("failed")
    print(json.dumps(figures))
    del logits, state, pooled


if __name__ == "__main__":
    main(Path(sys.argv[1]))
