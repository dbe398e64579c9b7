"""The check that published programs are held to: it agrees with right labels, and finds wrong ones."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import vramkit
from benchmarks.needs import needs_virtual_gpu
from benchmarks.programs import compare
from vramkit.results.profile import Profile
from vramkit.tape.events import Category

ROOT = Path(__file__).parents[1]
PROGRAM = """
import torch
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64)).cuda()
optimizer = torch.optim.Adam(model.parameters())
for _ in range(4):
    optimizer.zero_grad()
    model(torch.zeros(8, 64, device="cuda")).sum().backward()
    optimizer.step()
"""


@needs_virtual_gpu
def test_a_label_that_is_not_what_the_objects_say_is_found(tmp_path: Path) -> None:
    script, census, saved = tmp_path / "train.py", tmp_path / "census.json", tmp_path / "profile.npz"
    script.write_text(PROGRAM)
    counting = [str(ROOT / "benchmarks/programs/census.py"), str(census), str(script)]
    command = [sys.executable, "-m", "vramkit", "run", "--gpu", "t4", "--save", str(saved), *counting]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    profile = vramkit.load(saved)
    assert isinstance(profile, Profile)

    assert compare.differences(profile, census) == (4, [])

    wrong = profile.tape.allocations.copy()
    wrong["category"][wrong["category"] == Category.BUFFER] = Category.OTHER
    _, [first, *_] = compare.differences(replace(profile, tape=replace(profile.tape, allocations=wrong)), census)
    assert (first.counted_as, first.labelled_as) == ("buffer", "other")
    assert first.size == 2 * 64 * 4 + 8  # the running mean and variance, and how many batches there were
