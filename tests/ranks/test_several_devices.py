"""Several virtual cards in one process, without ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vramkit

pytestmark = pytest.mark.virtual_gpu

REPLICATED = """
import json, torch
from torch import nn
model = nn.DataParallel(nn.Sequential(nn.Linear(512, 1024, bias=False), nn.ReLU(), nn.Linear(1024, 1024))).cuda()
optimizer = torch.optim.Adam(model.parameters())
for _ in range(2):
    model(torch.zeros(64, 512, device="cuda")).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
print(json.dumps([torch.cuda.max_memory_allocated(number) for number in range(2)]))
"""


def test_data_parallel_has_its_replicas_on_each_device(tmp_path: Path) -> None:
    script, saved = tmp_path / "train.py", tmp_path / "run.npz"
    script.write_text(REPLICATED)
    command = [sys.executable, "-m", "vramkit", "run", "--gpu", "t4", "--count", "2", "--save", str(saved), str(script)]

    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    first, second = vramkit.load(saved).each_device()
    assert str([first.peak_allocated, second.peak_allocated]) == done.stdout.strip()
    replica = 1024 * 1024 * 4  # bytes of the second layer's weight, which is copied in each step
    assert np.count_nonzero(second.tape.allocations["requested"] == replica) >= 2
    assert second.peak.optimizer_state == 0 < first.peak.optimizer_state
    assert "Also cuda:1" in done.stderr
