"""What collectives hold that nobody has waited for, until NCCL's watchdog lets it go."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import torch
from torch import distributed

class Averaging(torch.optim.SGD):  # waits in the device's stream, as ZeRO's kin do: the host is far ahead of it
    def step(self):
        gradients = [weight.grad for group in self.param_groups for weight in group["params"]]
        works = [distributed.all_reduce(gradient, async_op=True) for gradient in gradients]
        for work in works:
            work.get_future().wait()
        super().step()

distributed.init_process_group("nccl")
weights = [torch.nn.Parameter(torch.zeros(1 << 20, device="cuda")) for _ in range(3)]
optimizers = [Averaging([weight], lr=0.1) for weight in weights[:2]]
shared = torch.optim.SGD(weights, lr=0.1)  # as wrappers of an optimizer have all that it has, and never come
for _ in range(3):
    before = torch.cuda.memory_allocated()
    sum(weight.sum() for weight in weights[:2]).backward()
    made = torch.cuda.memory_allocated() - before
    for optimizer in optimizers:
        optimizer.step()
    for optimizer in optimizers:
        optimizer.zero_grad()
    print("held", made, torch.cuda.memory_allocated() - before, flush=True)
distributed.destroy_process_group()
"""


@pytest.mark.virtual_gpu
def test_optimizers_one_after_the_other_hold_what_all_of_them_reduced(tmp_path: Path) -> None:
    """The first one's collectives are done on the device when the last one's are on their way: a report of eight H20
    has the gradients of both beside the next step's (nanochat dd6ff9a, torch 2.8)."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "vramkit", "run", "--gpu", "h100", "--world-size", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    held = [[int(word) for word in line.split()[1:]] for line in done.stdout.splitlines() if line.startswith("held ")]
    made, left = held[0]
    assert left == made > 0
    assert [left for _, left in held[1:]] == [0, 0]  # it is let go as the next step holds as much
