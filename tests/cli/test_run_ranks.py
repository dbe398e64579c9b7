"""``vramkit run`` with ranks of a distributed job: which are played, what is said of them, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import command, flat, write
from shown_pages import header_of

import vramkit

WATCHED = """
    import threading
    from vramkit.ranks.store import MirrorStore

    lookers, check = set(), MirrorStore.check
    MirrorStore.check = lambda store, keys: lookers.add(threading.get_ident()) or check(store, keys)
"""
TRAINS = """
    import os, torch, torch.distributed as dist

    local = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(local)
    dist.init_process_group("nccl", device_id=torch.device("cuda", local))
    objects = [None] * dist.get_world_size()
    dist.all_gather_object(objects, dist.get_rank())
    place = local, os.environ["LOCAL_WORLD_SIZE"], os.environ["GROUP_RANK"], objects, torch.cuda.device_count()
    print(" ".join(map(str, place)) + "\\n", end="", flush=True)
    model = torch.nn.Linear(64 * (1 + dist.get_rank()), 64).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        model(torch.ones(2, model.in_features, device="cuda")).sum().backward()
        optimizer.step()
"""


@pytest.mark.virtual_gpu
def test_a_rank_that_is_alone_sees_its_mirrors_and_reports_its_device(tmp_path: Path) -> None:
    # No thread of NCCL's looks into the store of this rank, which is Python's, so none does when Python has ended.
    script = write(tmp_path / "train.py", WATCHED + TRAINS + "    assert lookers <= {threading.main_thread().ident}\n")
    eager = {**os.environ, "TORCH_NCCL_COORD_CHECK_MILSEC": "1"}

    rank = ("--world-size", "6", "--gpus-per-node", "4", "--rank", "5")
    done = command("run", "--gpu", "h100", *rank, str(script), environment=eager)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "1 2 1 [5, 5, 5, 5, 5, 5] 2"
    assert "1 rank of a job of 6" in done.stderr
    assert "(cuda:1, " in done.stderr
    assert "played alone" in flat(done.stderr)
    assert "for want of" not in flat(done.stderr)


@pytest.mark.virtual_gpu
def test_several_ranks_are_shown_the_fullest_first(tmp_path: Path) -> None:
    script, document, page = write(tmp_path / "train.py", TRAINS), tmp_path / "run.json", tmp_path / "run.html"
    files = ("--json", str(document), "--html", str(page))

    ranks = ("--world-size", "40", "--ranks", "0,39", "--alone")
    done = command("run", "--gpu", "t4", *ranks, *files, str(script))

    assert done.returncode == 0, done.stderr
    header = header_of(page)
    assert (header["tabs"], [each["tab"] for each in header["devices"]]) == ("rank", ["rank 39", "rank 0"])
    assert sorted(tmp_path.glob("*.html")) == [page]
    found = json.loads(document.read_text())["processes"]
    peaks = {each["rank"]: each["result"]["devices"][0]["peak_allocated"] for each in found}
    assert [each["rank"] for each in found] == [39, 0]
    assert peaks[39] > peaks[0]
    assert "torch's defaults" in done.stderr
    assert done.stderr.count("vramkit: memory of") == 1
    assert "The report of rank 39 follows." in done.stderr


@pytest.mark.virtual_gpu
def test_processes_of_a_launcher_meet_and_each_has_its_own_files(tmp_path: Path) -> None:
    script = write(
        tmp_path / "train.py",
        TRAINS
        + """
    told = [None]
    dist.broadcast_object_list(told if dist.get_rank() else ["from 0"], 0)
    scattered = [None]
    dist.scatter_object_list(scattered, None if dist.get_rank() else ["a", "b"], 0)
    me, other = dist.get_rank(), 1 - dist.get_rank()
    passed = __file__ + ".passed"
    for _ in range(200_000 if me == 0 else 0):
        assert not os.path.exists(passed)
    dist.barrier()
    if me == 1:
        open(passed, "w").close()
    shapes = [torch.zeros(2, dtype=torch.int64, device="cuda") for _ in range(2)]
    mine = torch.tensor([me, 7], device="cuda")
    request = dist.irecv(shapes[0], other)  # both wait for each other
    dist.isend(mine, other)
    batch = [dist.P2POp(dist.irecv, shapes[1], other), dist.P2POp(dist.isend, mine + 1, other)]
    for each in [request, *dist.batch_isend_irecv(batch)]:
        each.wait()
    print(f"{dist.get_rank()} {told} {scattered} {[each.tolist() for each in shapes]}\\n", end="", flush=True)
    dist.destroy_process_group()
    """,
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = ["-m", "vramkit", "run", "--gpu", "t4", "--save", str(tmp_path / "step.npz"), str(script)]

    done = subprocess.run([*launch, *run], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    assert done.returncode == 0, done.stderr
    assert "1 ['from 0'] ['b'] [[0, 7], [1, 8]]" in done.stdout
    assert "0 [None] ['a'] [[1, 7], [2, 8]]" in done.stdout
    assert done.stdout.count("[0, 1] 2") == 2
    first, second = (vramkit.load(tmp_path / f"step-rank{rank}.npz") for rank in (0, 1))
    assert second.peak_allocated > first.peak_allocated
    assert second.device == "cuda:1"


@pytest.mark.virtual_gpu
def test_objects_of_an_absent_rank_are_an_error_with_a_remedy(tmp_path: Path) -> None:
    script = write(
        tmp_path / "train.py",
        """
        import torch.distributed as dist

        dist.init_process_group("gloo")
        objects = [dist.get_rank()]
        dist.broadcast_object_list(objects, dist.get_rank())
        dist.barrier()
        print(objects, flush=True)

        import torch
        from torch.distributed.optim import ZeroRedundancyOptimizer

        held = torch.ones(2, device="cuda")
        optimizer = ZeroRedundancyOptimizer([torch.nn.Parameter(torch.ones(2))], torch.optim.SGD, lr=0.1)
        try:
            optimizer.consolidate_state_dict()
        except Exception as error:
            print(error, flush=True)
        dist.broadcast_object_list(objects, 0)
        """,
    )

    done = command("run", "--gpu", "t4", "--world-size", "3", "--rank", "2", str(script))

    assert done.returncode == 1
    first, second = done.stdout.splitlines()
    assert first == "[2]"
    assert "Rank 2 is to get a part of its state from rank 1, which is not played" in second
    assert "Rank 2 is to get objects from rank 0, which is not played" in done.stderr
    assert "Play --ranks 0,2, or all of them" in done.stderr
    assert "If the script failed for want of something that another rank would have sent" in flat(done.stderr)


@pytest.mark.virtual_gpu
def test_memory_that_ranks_share_is_refused_with_a_remedy_and_context_parallel_runs(tmp_path: Path) -> None:
    script = write(
        tmp_path / "train.py",
        """
        import os, torch, torch.distributed as dist, torch.nn.functional as F
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor.experimental import context_parallel
        from torch.nn.attention import SDPBackend, sdpa_kernel

        mesh = init_device_mesh("cuda", (2,))
        parts = [torch.zeros(1, 2, 512, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION), context_parallel(mesh, buffers=parts, buffer_seq_dims=[2] * 3):
            for part in parts:
                part.requires_grad_()
            out = F.scaled_dot_product_attention(*parts, is_causal=True)
            out.sum().backward()
            print(f"rows {out.shape[2]}\\n", end="", flush=True)
            for part in parts:
                part.requires_grad_(False)

        import torch.distributed._symmetric_memory as shared

        if hasattr(shared, "set_backend"):
            print(shared.is_nvshmem_available())
            try:
                shared.set_backend("NVSHMEM")
            except ValueError as error:
                print(error, flush=True)
        a, b = torch.zeros(64, 32, device="cuda"), torch.zeros(32, 16, device="cuda")
        torch.ops.symm_mem.fused_all_gather_matmul(a, [b], 0, mesh.get_group().group_name)
        """,
    )

    done = command("run", "--gpu", "h100", "--world-size", "2", "--ranks", "all", str(script))

    assert done.returncode == 1
    assert done.stdout.count("rows 256\n") == 2
    assert "NVSHMEM was chosen" in done.stdout
    assert "True" not in done.stdout
    before, _, report = done.stderr.partition("vramkit: 2 ranks")
    assert "This is a limit of the virtual GPU: memory that ranks share" in before
    assert "Switch it off" in flat(report)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rank", "1"], "--rank was given without --world-size"),
        (["--world-size", "2", "--rank", "2"], "Ranks are 0 to 1"),
        (["--world-size", "2", "--alone"], "--alone was given without --ranks"),
        (["--world-size", "0"], "at least 1"),
        (["--nproc", "0"], "at least 1"),
        (["--nproc", "2", "--rank", "1"], "--nproc was given with"),
        (["--world-size", "4", "--ranks", "0;3"], "such as 0,32, or all"),
    ],
)
def test_ranks_that_no_job_has_are_refused_before_anything_runs(options: list[str], said: str, tmp_path: Path) -> None:
    script = write(tmp_path / "train.py", "print('ran')")

    done = command("run", "--gpu", "t4", *options, str(script))

    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""
