"""``vramkit run`` with a limit and a baseline: what a script may take, and the exit code where it takes more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import command, flat, write

TRAIN = """
    import sys
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = torch.nn.Linear(256, 4096), torch.nn.Linear(4096, 10)
            self.kept = []

        def forward(self, x):
            x = torch.relu(self.up(x))
            if "twice" in sys.argv:
                self.kept[:] = [x.detach().clone()]
            return self.down(x)

    def train():
        net = Net().cuda()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(2):
            net(torch.zeros(512, 256, device="cuda")).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    if __name__ == "__main__":
        if "late" in sys.argv:  # a process that goes on after the script's own code has ended
            torch.multiprocessing.get_context("spawn").Process(target=train).start()
        else:
            train()
            sys.exit(0)
"""


@pytest.mark.virtual_gpu
def test_a_script_that_takes_more_than_before_ends_with_1_and_who_it_is(tmp_path: Path) -> None:
    script = str(write(tmp_path / "train.py", TRAIN))
    base = str(tmp_path / "base.npz")
    within = ("run", "--gpu", "t4", "--limit", "1 GiB", "--stacks")

    before = command(*within, "--save", base, script)
    same = command(*within, "--baseline", base, "--tolerance", "0%", script)
    wrong = command(*within, "--baseline", base, "--tolerance", "two", script)
    more = command(*within, "--baseline", base, "--json", str(tmp_path / "run.json"), script, "twice")

    assert (before.returncode, same.returncode, more.returncode) == (0, 0, 1)
    assert wrong.returncode == 2
    assert "Write a part such as '2%'" in flat(wrong.stderr)
    assert "baseline" not in same.stderr
    assert "GPU memory grew by more than 1% since the baseline" in flat(more.stderr)
    assert "module: +8.00 MiB in Net (Net), most of it activations" in flat(more.stderr)
    assert "line: +8.00 MiB by train.py:14 in forward" in flat(more.stderr)
    document = json.loads((tmp_path / "run.json").read_text())
    assert document["exit_code"] == 1
    assert [text.split(" since")[0] for text in document["exceeded"]] == ["GPU memory grew by more than 1%"]


@pytest.mark.virtual_gpu
def test_a_process_that_the_script_leaves_behind_counts_too(tmp_path: Path) -> None:
    script = str(write(tmp_path / "train.py", TRAIN))

    done = command("run", "--gpu", "t4", "--limit", "8 MiB", script, "late")

    assert done.returncode == 1
    assert "GPU memory is over its limit" in flat(done.stderr)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--limit", "11 gigs"], "A size in bytes was expected"),
        (["--tolerance", "2%"], "--tolerance was given with no --baseline"),
        (["--baseline", "nowhere.npz"], "there is no file nowhere.npz"),
    ],
)
def test_what_can_not_be_meant_is_said_before_the_script_runs(options: list[str], text: str, tmp_path: Path) -> None:
    script = str(write(tmp_path / "train.py", "print('it ran')"))

    done = command("run", "--gpu", "t4", *options, script)

    assert done.returncode == 2
    assert text.lower() in flat(done.stderr).lower()
    assert "it ran" not in done.stdout
