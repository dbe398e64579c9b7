"""``vramkit estimate``: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import vramkit
from vramkit.__main__ import main

MODULE = """
import torch

def pair():
    return torch.nn.Linear(512, 512), torch.zeros(8, 512)

def arguments():
    return {"model": torch.nn.Linear(512, 512), "batch": torch.zeros(8, 512), "optimizer": torch.optim.SGD}

def misspelt():
    return arguments() | {"optimiser": torch.optim.SGD}

def halfway():
    return {"model": torch.nn.Linear(512, 512), "loss": None}

def needs(path):
    return path

def raises():
    raise RuntimeError("on purpose")

def leaves():
    raise SystemExit(1)

def steps_badly():
    given = arguments()
    def step(batch):
        given["model"].train()
        raise KeyError("in the step")
    return given | {"optimizer": None, "step": step}

def nothing():
    return None

number = 3
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "described.py").write_text(MODULE)
    (tmp_path / "lacking.py").write_text("import a_module_that_is_absent")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.virtual_gpu
def test_the_report_is_printed_and_saved(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = main(["estimate", "described:arguments", "--gpu", "t4", "--save", "step.npz", "--batch-size", "32"])

    shown = capsys.readouterr().out
    assert code == 0
    assert shown.startswith("vramkit: predicted memory (virtual engine) of Tesla T4")
    assert "-> 32x512" in shown
    assert "Fits Tesla T4" in shown
    assert vramkit.load(tmp_path / "step.npz").device_name == "Tesla T4"


def test_the_engine_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["estimate", "described:arguments", "--gpu", "t4", "--engine", "fake"])

    assert code == 0
    assert capsys.readouterr().out.startswith("vramkit: predicted memory (fake engine) of Tesla T4")


@pytest.mark.virtual_gpu
def test_several_sizes_are_a_table_and_one_that_does_not_fit_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["estimate", "described:pair", "--gpu", "1 GiB", "--batch-size", "8", "1000000", "--max-batch-size"])

    *_, head, first, second, _, last = capsys.readouterr().out.splitlines()
    assert code == 1
    assert head.split()[:2] == ["batch", "size"]
    assert first.split()[0] == "8"
    assert second.split()[0] == "1,000,000"
    assert second.endswith("does not fit")
    assert last.startswith("The largest batch that fits Virtual GPU 1.00 GiB: ")


@pytest.mark.virtual_gpu
def test_each_card_gets_a_verdict_with_a_table_of_the_sizes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cards = ["--gpu", "t4", "1 GiB", "--batch-size", "8", "1000000"]

    code = main(["estimate", "described:pair", *cards, "--json", str(tmp_path / "found.json")])

    shown = capsys.readouterr().out
    document = json.loads((tmp_path / "found.json").read_text())
    [other] = document["other_gpus"]
    assert code == 1
    assert "\nFits Tesla T4" in shown
    assert "\nDOES NOT FIT Virtual GPU 1.00 GiB:\nbatch size" in shown
    assert [row["fits"] for row in document["batch_sizes"]] == [True, True]
    assert [row["fits"] for row in other["batch_sizes"]] == [True, False]
    assert other["fits"] is False


def test_a_function_takes_no_options_of_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "described:pair", "--lora", "8"]) == 2

    said = capsys.readouterr().err
    assert "--lora" in said
    assert "hf:" in said, "who left it out before a model's name"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("described", "'described' names none"),
        (".described:arguments", "'.described:arguments' names none"),
        ("absent:build", "no module 'absent'"),
        ("gpt2", "the name of a model begins with hf:, timm: or torchvision:"),
        ("tim:resnet50", "the name of a model begins with hf:, timm: or torchvision:"),
        ("described:absent", "has no 'absent'"),
        ("described:number", "is int"),
        ("described:nothing", "returned NoneType"),
        ("described:misspelt", "a dict with 'optimiser'"),
        ("described:halfway", "described:halfway returned has no 'batch'"),
    ],
)
def test_wrong_use_is_one_message_and_status_2(function: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["estimate", function, "--gpu", "t4"])

    shown = capsys.readouterr()
    assert code == 2
    assert shown.out == ""
    assert words in shown.err


@pytest.mark.parametrize(
    ("path", "words"), [("", "the name is empty"), ("nowhere/x.npz", "there is no folder 'nowhere'")]
)
def test_where_to_save_is_looked_at_before_anything_runs(
    path: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["estimate", "described:raises", "--save", path])

    assert code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("function", "line", "words"),
    [
        ("described:needs", "TypeError: needs() missing 1", "was to call described:needs. It raised TypeError"),
        ("described:raises", 'raise RuntimeError("on purpose")', "It raised RuntimeError: on purpose"),
        ("described:leaves", "raise SystemExit(1)", "It raised SystemExit: 1"),
        ("lacking:build", "import a_module_that_is_absent", "It raised ModuleNotFoundError"),
        ("described:steps_badly", 'raise KeyError("in the step")', "was to run step 1 of 3"),
    ],
)
def test_what_fails_is_status_2_with_its_own_traceback_above(
    function: str, line: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["estimate", function, "--gpu", "t4", "--engine", "fake"])

    above, _, message = capsys.readouterr().err.rpartition("\nvramkit: ")
    assert code == 2
    assert line in above
    assert "cli/estimate.py" not in above
    assert words in message
    assert "the traceback above" in message
