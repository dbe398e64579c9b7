"""Launchers in a process that is a rank already start this rank, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import command, write

pytestmark = pytest.mark.virtual_gpu

LAUNCHES = """
    import os, sys, torch
    import torch.distributed as dist
    import torch.multiprocessing as mp
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    def told(index):
        print("process", index, "of rank", os.environ["RANK"], flush=True)

    def named(name):
        return name, os.environ["RANK"]

    mp.start_processes(told, nprocs=2, start_method="fork")
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2)
    print(elastic_launch(config, named)("function"), flush=True)
    code = "import os; print('command of rank', os.environ['RANK'])"
    elastic_launch(config, sys.executable)("-c", code)
    for wrong in (
        lambda: elastic_launch(LaunchConfig(1, 1, 4), named)("function"),
        lambda: dist.init_process_group("gloo", rank=1, world_size=4),
    ):
        try:
            wrong()
        except ValueError as error:
            print(error, flush=True)
    torch.cuda.get_rng_state_all()  # begins CUDA by a name of its own
    torch.ones(1000, device="cuda")
"""


def test_a_launcher_starts_the_rank_that_is_played(tmp_path: Path) -> None:
    script = write(tmp_path / "train.py", LAUNCHES)

    done = command("run", "--gpu", "t4", "--world-size", "2", "--rank", "1", str(script))

    assert done.returncode == 0, done.stderr
    process, function, launched, *wrong = done.stdout.splitlines()
    assert (process, function, launched) == ("process 1 of rank 1", "{1: ('function', '1')}", "command of rank 1")
    assert "--world-size 4 --gpus-per-node 4" in wrong[0]
    assert wrong[1].startswith("torch.distributed was to begin with 4 ranks. In a job of 2")
    assert "4.00 KiB" in done.stderr
