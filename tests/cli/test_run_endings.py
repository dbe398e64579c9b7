"""``vramkit run``: what ends a script before its end, what is said meanwhile, and what is written of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import command, flat, write

import vramkit
from vramkit.cli.endings import Ended, Timeout

TRAIN = """
    import contextlib
    import torch

    class Trainer:
        def __init__(self):
            self.model = torch.nn.Linear(256, 256).cuda()
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

        def fit(self, steps):
            with contextlib.suppress(Exception):
                for number in range(steps):
                    self.step(number)

        def step(self, number):
            try:
                self.model(torch.ones(8, 256, device="cuda")).sum().backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
            except Exception:
                print("caught")
            print("step", number, flush=True)
"""


@pytest.mark.virtual_gpu
def test_so_many_steps_are_run_and_the_result_is_written_as_json(tmp_path: Path) -> None:
    script = write(
        tmp_path / "train.py",
        TRAIN
        + """
    try:
        Trainer().fit(1000)
    finally:
        print("cleaned up")
    """,
    )

    done = command(
        *("run", "--gpu", "t4", "--steps", "3", "--alloc-conf", "expandable_segments:True", "--json", "-"),
        *("--save", str(tmp_path / "step.npz"), str(script)),
    )

    assert done.returncode == 0
    *lines, document = done.stdout.splitlines()
    assert lines == ["step 0", "step 1", "cleaned up"], "the third ended inside optimizer.step()"
    assert "over 3 steps" in done.stderr
    assert "Ended after 3 training steps, as --steps asked" in flat(done.stderr)
    found = json.loads(document)
    assert (found["schema"], found["kind"], found["ended"], found["exit_code"]) == (1, "run", "steps", 0)
    [process] = found["processes"]
    saved = vramkit.load(tmp_path / "step.npz")
    assert process["is_script"]
    assert process["result"] == saved.to_dict()
    assert process["result"]["devices"][0]["alloc_conf"] == "expandable_segments:True"


@pytest.mark.virtual_gpu
def test_a_script_that_hangs_is_ended_with_the_report_and_so_are_its_processes(tmp_path: Path) -> None:
    script = write(
        tmp_path / "train.py",
        """
        import multiprocessing, os, signal
        import torch

        def hang(began):
            kept = torch.ones(1000, device="cuda")
            began.set()
            signal.pause()

        if __name__ == "__main__":
            context = multiprocessing.get_context("spawn")
            began = context.Event()
            child = context.Process(target=hang, args=(began,))
            child.start()
            began.wait()
            os.kill(os.getpid(), signal.SIGALRM)  # as the timer does
            child.join()
        """,
    )

    done = command("run", "--gpu", "t4", "--timeout", "3600", "--json", "-", str(script))

    found = json.loads(done.stdout)
    assert done.returncode == 124, done.stderr
    assert found["ended"] == "timeout"
    assert [each["is_script"] for each in found["processes"]] == [False]
    assert "Ended by --timeout" in flat(done.stderr)


@pytest.mark.virtual_gpu
def test_an_interrupt_ends_with_the_report_and_says_so(tmp_path: Path) -> None:
    script = write(
        tmp_path / "train.py", TRAIN + "\n    Trainer().fit(2)\n    print('ready', flush=True)\n    input()\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-m", "vramkit", "run", "--gpu", "t4", str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    assert running.stdout is not None
    while running.stdout.readline() not in ("ready\n", ""):
        pass

    running.send_signal(signal.SIGINT)
    _, told = running.communicate()

    assert running.returncode == 130
    assert "KeyboardInterrupt" in told
    assert "over 2 steps" in told
    assert "Interrupted after 2 training steps" in flat(told)


@pytest.mark.virtual_gpu
@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_a_terminal_shows_how_far_the_script_is_and_keeps_nothing_of_it(tmp_path: Path) -> None:
    script = write(tmp_path / "train.py", TRAIN + "\n    Trainer().fit(2)\n    input()\n")
    ours, theirs = os.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "vramkit", "run", "--gpu", "t4", str(script)],
        stdin=subprocess.PIPE,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while b"vramkit: step 3" not in shown:  # drawn while the script waits for input
        shown += os.read(ours, 4096)

    running.communicate(b"\n")
    with open(ours, "rb", buffering=0) as terminal:
        try:
            while piece := terminal.read(4096):
                shown += piece
        except OSError:  # nobody writes to it any more
            pass

    assert running.returncode == 0
    before, _, after = shown.rpartition(b"vramkit: step 3")
    assert b"allocated, at most" in after
    drawn = rb"\r\x1b\[K(vramkit: step [^\r]*)?"  # between the script's lines, too, where it is slow
    assert b"step 0\r\nstep 1\r\n" in re.sub(drawn, b"", before)
    assert after.index(b"\r\x1b[K") < after.index(b"vramkit: memory of Tesla T4")


@pytest.mark.virtual_gpu
def test_names_that_a_terminal_can_not_show_are_written_out(tmp_path: Path) -> None:
    script = write(
        tmp_path / "train.py",
        """
        import torch
        Größe = type("Größe", (torch.nn.Linear,), {})
        Größe(64, 64).cuda()(torch.ones(8, 64, device="cuda")).sum().backward()
        """,
    )
    saved = str(tmp_path / "step.npz")
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}

    done = command("run", "--gpu", "t4", "--save", saved, str(script), environment=ascii_only)
    viewed = command("view", saved, environment=ascii_only)

    assert (done.returncode, viewed.returncode) == (0, 0), viewed.stderr
    assert "Gr\\xf6\\xdfe" in done.stderr
    assert "Gr\\xf6\\xdfe" in viewed.stdout


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer")
def test_a_time_that_is_over_goes_past_except_exception_and_the_timer_is_gone_afterwards() -> None:
    told: list[str] = []
    timeout = Timeout(0.01)

    with pytest.raises(Ended) as ended, timeout.running(lambda: told.append("told")), contextlib.suppress(Exception):
        signal.pause()

    assert (ended.value.code, timeout.is_over, told) == (124, True, ["told"])
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
