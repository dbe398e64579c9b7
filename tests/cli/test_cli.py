"""The command line: what the verbs print, where, and the exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import command, write
from shown_pages import header_of
from told_profiles import MIB, training

import vramkit
from vramkit.__main__ import main
from vramkit.gpus import CATALOGUE, installed

# -- without a script -------------------------------------------------------------------------------------------------


def test_help_names_every_verb_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])

    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(f"    {verb} " in text for verb in ("demo", "run", "view", "gpus"))
    assert "Exit codes: 0 good, 1 does not fit or ran out of memory, 2 wrong use." in text


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])

    assert capsys.readouterr().out == f"vramkit {vramkit.__version__}\n"


def test_the_catalogue_is_listed_and_torch_is_not_needed() -> None:
    code = "import sys; from vramkit.__main__ import main; main(['gpus']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert lines[-1] == "False"
    for name, gpu in CATALOGUE.items():
        [row] = [line for line in lines if line.split()[:1] == [name]]
        assert gpu.product in row
        assert f"{gpu.memory:,}" in row


def test_cards_that_have_so_much_beside_the_context_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpus", "--fits", "80 GiB", "--json", "-"]) == 0

    found = json.loads(capsys.readouterr().out)["cards"]
    wanted = {name for name, card in CATALOGUE.items() if card.memory - card.context >= 80 << 30}
    assert {each["name"] for each in found} == wanted
    assert [each["memory"] - each["context"] for each in found] == sorted(
        each["memory"] - each["context"] for each in found
    )
    assert all(each["record"] for each in found)
    assert any(each["derived"] for each in found)
    assert main(["gpus", "--fits", "4 TiB"]) == 1


def test_devices_are_what_the_driver_lists(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.dumps([["A Card", 24 * MIB, 8, 6, 82, 6 * MIB]])
    monkeypatch.setattr(installed, "_LIST", f"print({rows!r})")

    main(["gpus"])

    row = capsys.readouterr().out.splitlines()[-1]
    assert row.split() == ["cuda:0", "A", "Card", "24.0", "MiB", f"{24 * MIB:,}", "8.6", "82"]


@pytest.mark.parametrize("code", ["import os; os.abort()", "print('nonsense')", "print('[]')"])
def test_a_driver_that_fails_has_no_devices(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "_LIST", code)

    assert installed.cuda_devices() == []


def test_a_damaged_profile_is_told_by_its_name_whatever_it_begins_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.npz").write_bytes(b"\0" * 100)

    assert main(["view", str(tmp_path / "bad.npz")]) == 2
    shown = capsys.readouterr().err
    assert "a saved profile's" in shown
    assert not any(word in shown for word in ("snapshot", "pickle"))


def test_view_prints_the_report_of_a_saved_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = training().profile(reserved=200 * MIB, device_name="A Card")
    profile.save(tmp_path / "step.npz")

    assert main(["view", str(tmp_path / "step.npz")]) == 0
    assert capsys.readouterr().out == f"{profile.report()}\n"


def test_view_also_writes_a_web_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = training().profile(device_name="A Card")
    profile.save(tmp_path / "step.npz")
    path = tmp_path / "step.html"

    assert main(["view", str(tmp_path / "step.npz"), "--html", str(path)]) == 0
    assert capsys.readouterr().out.endswith(f"\n\nvramkit: the report is in {path}; open it in a browser\n")
    assert header_of(path)["devices"][0]["peak_allocated"] == profile.peak_allocated


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["view", "missing.npz"], ["missing.npz", "can't be read"]),
        (["view", __file__], ["test_cli.py", "damaged"]),
        (["run", "--gpu", "t4", "missing.py"], ["'missing.py'", "no such file"]),
        (["view", str(Path(__file__).parent)], [f"vramkit: {Path(__file__).parent} was to be shown"]),
        (["run", "--gpu", "t4"], ["vramkit: vramkit run was called with no script to run. Add"]),
        (["run", "--gpu", "t44", __file__], ["'t44'", "nearest are 't4'"]),
        (["run", "--gpu", "24g", __file__], ["'24g'", "Write '24 GiB' if that is meant"]),
        (["run", "--gpu", "real", "--count", "2", __file__], ["--count", "--gpu real"]),
        (["run", "--gpu", "t4", "--save", "", __file__], ["the name is empty"]),
        (["run", "--gpu", "t4", "--json", "/nowhere/x.json", __file__], ["The JSON", "there is no folder"]),
        (["run", "--gpu", "t4", "--alloc-conf", "expandable:1", __file__], ["'expandable'", "expandable_segments"]),
        (["view", __file__, "--max-bytes", "many"], ["many"]),
        (["run", "--gpu", "t4", "--html", "no/x.html", __file__], ["'no/x.html'", "there is no folder 'no'"]),
        (["demo", "--html", "no/x.html"], ["'no/x.html'", "there is no folder 'no'"]),
        (["view", __file__, "--html", "no/x.html"], ["'no/x.html'", "there is no folder 'no'"]),
        (["plan", "m:f", "--html", "no/x.html"], ["'no/x.html'", "there is no folder 'no'"]),
        (["run", "--gpu", "t4", "--max-events", "9" * 30, __file__], ["--max-events was given with 999", "At most"]),
        (["demo", "--device", "cpu", "--gpu", "t4"], ["--device cpu and --gpu"]),
        (["demo", "--gpu", "t44"], ["'t44'"]),
    ],
)
def test_wrong_use_is_one_message_and_status_2(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(arguments)

    shown = capsys.readouterr()
    assert status == 2
    assert shown.out == ""
    assert shown.err.startswith("vramkit: ")
    assert "Traceback" not in shown.err
    assert all(word in shown.err for word in words)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["run", "x.py"],
        ["run", "--gpu", "t4", "--steps", "0", "x.py"],
        ["run", "--gpu", "t4", "--timeout", "-1", "x.py"],
        ["run", "--gpu", "t4", "--fast", "x.py"],
        ["demo", "--steps", "0"],
        ["view"],
    ],
)
def test_what_the_parser_refuses_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 2
    assert "usage: vramkit" in capsys.readouterr().err


# -- run --------------------------------------------------------------------------------------------------------------

TRAIN = """
    import argparse
    import sys

    import torch
    from helper import WIDTH

    def main():
        parser = argparse.ArgumentParser()
        parser.add_argument("--steps", type=int)
        parser.add_argument("--gpu")
        parser.add_argument("--co", action="store_true")  # vramkit has --count and --copy-limit
        options = parser.parse_args()
        model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU()).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(options.steps):
            model(torch.ones(8, WIDTH, device="cuda")).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        print(__name__, __file__ == sys.argv[0], sys.argv[1:], sys.modules["__main__"].main is main)
        return 7

    if __name__ == "__main__":
        sys.exit(main())
"""


@pytest.mark.virtual_gpu
def test_a_script_runs_as_python_runs_it_and_the_report_goes_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = write(tmp_path / "project" / "train.py", TRAIN)
    write(tmp_path / "project" / "helper.py", "WIDTH = 256")
    saved = tmp_path / "step.npz"

    done = command("run", "--gpu", "t4", "--save", str(saved), str(script), "--steps", "3", "--gpu", "own", "--co")

    assert done.stdout == "__main__ True ['--steps', '3', '--gpu', 'own', '--co'] True\n"
    assert done.returncode == 7
    assert "memory of Tesla T4 (cuda:0" in done.stderr
    assert "over 3 steps" in done.stderr
    assert "measured on a virtual GPU" in " ".join(done.stderr.split())
    profile = vramkit.load(saved)
    assert profile.report() in done.stderr
    width = 256
    assert profile.peak.parameters == 4 * (width * width + width)


@pytest.mark.virtual_gpu
def test_an_exception_shows_the_scripts_own_frames(tmp_path: Path) -> None:
    script = write(
        tmp_path / "broken.py",
        """
        import torch
        def fail():
            raise ValueError("on purpose")
        kept = torch.ones(1000, device="cuda")
        fail()
        """,
    )

    done = command("run", "--gpu", "t4", str(script))

    traceback, report = done.stderr.split("\nvramkit: ", 1)
    assert done.returncode == 1
    assert traceback.startswith("Traceback (most recent call last):\n")
    assert traceback.count("  File ") == 2
    assert traceback.endswith("ValueError: on purpose\n")
    assert "Most memory was allocated" in report


@pytest.mark.virtual_gpu
def test_an_error_hides_our_frames_that_it_passed_through_and_no_others(tmp_path: Path) -> None:
    script = write(
        tmp_path / "deep.py",
        """
        import torch

        class Broken(torch.nn.Module):
            def forward(self, x):
                try:
                    raise KeyError("first")
                except KeyError as error:
                    raise ValueError("on purpose") from error

        torch.nn.Sequential(Broken()).cuda()(torch.ones(2, device="cuda"))
        """,
    )

    done = command("run", "--gpu", "t4", str(script))

    assert done.returncode == 1
    assert "KeyError: 'first'" in done.stderr
    assert "ValueError: on purpose" in done.stderr
    assert done.stderr.count("deep.py") == 3
    assert "container.py" in done.stderr, "torch's frames stay"
    assert not [line for line in done.stderr.splitlines() if line.startswith("  File") and "/vramkit/" in line]


@pytest.mark.virtual_gpu
def test_an_error_of_ours_keeps_the_frames_that_raised_it_and_says_who_measures(tmp_path: Path) -> None:
    script = write(tmp_path / "own.py", "import vramkit\nwith vramkit.profile():  # before any use of CUDA\n    pass\n")

    done = command("run", "--gpu", "t4", str(script))

    assert done.returncode == 1
    assert "profiler.py" in done.stderr
    assert "vramkit run" in done.stderr.split("vramkit.UsageError: ")[1]
    assert "used no CUDA memory" not in done.stderr, "what it raised says more"


@pytest.mark.virtual_gpu
def test_where_to_save_is_looked_at_before_the_script_runs(tmp_path: Path) -> None:
    script = write(tmp_path / "train.py", "print('ran')")

    done = command("run", "--gpu", "t4", "--save", str(tmp_path / "nowhere" / "x.npz"), str(script))

    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no folder" in done.stderr


@pytest.mark.virtual_gpu
@pytest.mark.parametrize(("ending", "code"), [("raise ValueError", 1), ("raise SystemExit(3)", 3), ("", 0)])
def test_a_reader_that_leaves_early_does_not_change_the_exit_code(tmp_path: Path, ending: str, code: int) -> None:
    script = write(tmp_path / "train.py", f"import torch\nkept = torch.ones(9, device='cuda')\n{ending}\n")
    read, written = os.pipe()
    os.close(read)

    done = subprocess.run(
        [sys.executable, "-m", "vramkit", "run", "--gpu", "t4", str(script)], stdout=written, stderr=written
    )

    os.close(written)
    assert done.returncode == code


@pytest.mark.virtual_gpu
def test_running_out_of_memory_ends_with_what_held_it_and_status_1(tmp_path: Path) -> None:
    script = write(
        tmp_path / "large.py",
        """
        import torch
        kept = [torch.ones(1 << 28, dtype=torch.uint8, device="cuda") for _ in range(100)]
        """,
    )

    done = command("run", "--gpu", "2 GiB", str(script))

    assert done.returncode == 1
    assert done.stderr.count("OUT OF MEMORY: 256.0 MiB") == 1
    assert "torch.OutOfMemoryError" in done.stderr
    assert done.stderr.index("Traceback") < done.stderr.index("OUT OF MEMORY") < done.stderr.index("What held")


@pytest.mark.virtual_gpu
def test_a_module_runs_with_its_package(tmp_path: Path) -> None:
    write(tmp_path / "package" / "__init__.py", "")
    write(tmp_path / "package" / "other.py", "import torch; SIZE = torch.cuda.device_count()")
    write(
        tmp_path / "package" / "__main__.py",
        """
        import os, sys
        from .other import SIZE
        print(SIZE, __name__, __package__, os.path.basename(sys.argv[0]), sys.argv[1:], sys.path[0] == os.getcwd())
        """,
    )

    done = command("run", "--gpu", "t4", "--count", "3", "-m", "package", "-m", "--save", folder=tmp_path)

    assert done.stdout == "3 __main__ package __main__.py ['-m', '--save'] True\n"
    assert done.returncode == 0
    assert "package: no process of it used CUDA memory" in " ".join(done.stderr.split())


@pytest.mark.virtual_gpu
def test_a_module_that_is_not_there_is_status_2(tmp_path: Path) -> None:
    done = command("run", "--gpu", "t4", "-m", "not_there.at_all", folder=tmp_path)

    assert done.returncode == 2
    assert done.stderr.startswith("vramkit: The module 'not_there.at_all' was to be run")


@pytest.mark.virtual_gpu
@pytest.mark.parametrize(
    ("what", "words"),
    [
        (["-m", ".relative"], "The module '.relative' was to be run. There is none"),
        (["folder"], "The script 'folder' was to be run. It can't be read: Is a directory"),
    ],
)
def test_what_is_no_program_is_one_message_and_status_2(what: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()

    done = command("run", "--gpu", "t4", *what, folder=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"vramkit: {words}")


def test_images_that_no_memory_holds_are_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")

    assert main(["demo", "--device", "cpu", "--batch-size", str(10**15)]) == 1
    assert "This many images don't fit" in capsys.readouterr().err


@pytest.mark.virtual_gpu
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_children_of_a_script_report_nothing_and_see_the_devices(tmp_path: Path) -> None:
    script = write(
        tmp_path / "parent.py",
        """
        import os, subprocess, sys
        import torch
        from torch.utils.data import DataLoader

        if __name__ == "__main__":
            for context in ("fork", "spawn"):
                loader = DataLoader(torch.arange(4.0), num_workers=1, multiprocessing_context=context)
                print(sum(float(each) for each in loader), flush=True)
            kept = torch.ones(1000, device="cuda")
            child = os.fork()
            if child == 0:
                sys.exit(5)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            subprocess.run([sys.executable, "-c", "import torch; print(torch.cuda.device_count())"])
        """,
    )

    done = command("run", "--gpu", "t4", "--count", "2", str(script))

    assert done.stdout == "6.0\n6.0\n5\n2\n", done.stderr
    assert done.returncode == 0
    assert done.stderr.count("vramkit: memory of") == 1
