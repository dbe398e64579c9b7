"""``vramkit run``: the processes that a script starts are measured, and one that can't be is told of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import command, flat, write

import vramkit

WORK = """
    import multiprocessing, os, signal, subprocess, sys
    import torch

    def work(width):
        model = torch.nn.Linear(width, 256).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            model(torch.ones(8, width, device="cuda")).sum().backward()
            optimizer.step()
        return torch.cuda.max_memory_allocated()

    def die(width):
        kept = torch.ones(width, device="cuda")
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.virtual_gpu
def test_spawned_and_forked_workers_and_subprocesses_have_profiles_the_fullest_first(tmp_path: Path) -> None:
    script = write(
        tmp_path / "parent.py",
        WORK
        + """
    if __name__ == "__main__" and sys.argv[1:]:
        print(work(512), flush=True)
    elif __name__ == "__main__":
        with multiprocessing.get_context("fork").Pool(1) as pool:
            print(*pool.map(work, [1024]), flush=True)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(*pool.map(work, [2048]), flush=True)
        subprocess.run([sys.executable, __file__, "child"])
        print(work(256), flush=True)
        multiprocessing.get_context("spawn").Process(target=work, args=(128,)).start()
    """,
    )
    saved = tmp_path / "step.npz"

    done = command("run", "--gpu", "t4", "--save", str(saved), "--json", "-", str(script))

    *peaks, document = done.stdout.splitlines()
    forked, spawned, subprocess_, own = map(int, peaks)
    found = json.loads(document)
    measured = [each["result"]["devices"][0]["peak_allocated"] for each in found["processes"]]
    assert done.returncode == 0
    assert {forked, spawned, subprocess_, own} <= set(measured)
    assert len(measured) == 5, "and the one that nobody waited for"
    assert [each["peak_reserved"] for each in _devices(found)] == sorted(
        (each["peak_reserved"] for each in _devices(found)), reverse=True
    )
    assert found["unmeasured"] == []
    assert done.stderr.count("vramkit: memory of") == 1
    assert vramkit.load(saved).peak_allocated == measured[0]
    assert vramkit.load(tmp_path / "step-5.npz").peak_allocated == measured[4]


@pytest.mark.virtual_gpu
def test_a_process_that_left_no_profile_is_told_of_and_steps_end_each(tmp_path: Path) -> None:
    script = write(
        tmp_path / "parent.py",
        WORK
        + """
    if __name__ == "__main__" and sys.argv[1:]:
        work(512)
    elif __name__ == "__main__":
        context = multiprocessing.get_context("spawn")
        children = [context.Process(target=target, args=(256,)) for target in (die, work)]
        for child in children:
            child.start()
        for child in children:
            child.join()
            print(child.exitcode)
        subprocess.run([sys.executable, "-I", __file__, "isolated"])
    """,
    )

    done = command("run", "--gpu", "t4", "--steps", "1", "--json", "-", str(script))

    *codes, document = done.stdout.splitlines()
    found, told = json.loads(document), flat(done.stderr)
    killed, isolated = sorted(found["unmeasured"], key=lambda each: " -I " in each["command"])
    assert codes == ["-9", "0"], "the other ended after its first step, as asked"
    assert [len(each["steps"]) for each in _devices(found)] == [1]
    assert f"Process {killed['pid']} (SpawnProcess-1 of parent.py) used CUDA and left no profile: it was killed" in told
    assert f"Process {isolated['pid']} (" in told
    assert "it did not read vramkit's sitecustomize" in told


def _devices(found: dict[str, list[dict[str, dict[str, list[dict[str, int]]]]]]) -> list[dict[str, int]]:
    return [each["result"]["devices"][0] for each in found["processes"]]
