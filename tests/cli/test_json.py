"""``--json`` of the verbs that run no script: the answer that they print, and nothing else where it goes to stdout."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from told_profiles import MIB, training

import vramkit
from vramkit.__main__ import main
from vramkit.gpus import CATALOGUE, installed
from vramkit.tape.events import Action, Category, Phase


def test_the_catalogue(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.dumps([["A Card", 24 * MIB, 8, 6, 82, 6 * MIB]])
    monkeypatch.setattr(installed, "_LIST", f"print({rows!r})")

    assert main(["gpus", "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["kind"], found["vramkit"]) == (1, "gpus", vramkit.__version__)
    assert {each["name"]: each["memory"] for each in found["cards"]} == {
        name: card.memory for name, card in CATALOGUE.items()
    }
    assert [(each["name"], each["memory"]) for each in found["devices"]] == [("A Card", 24 * MIB)]


def test_a_saved_profile_and_its_text_too_where_it_goes_to_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = training().profile(reserved=200 * MIB, device_name="A Card")
    profile.save(tmp_path / "step.npz")
    path = tmp_path / "step.json"

    assert main(["view", str(tmp_path / "step.npz"), "--json", str(path)]) == 0

    assert json.loads(path.read_text())["result"] == profile.to_dict()
    assert capsys.readouterr().out == f"{profile.report()}\n"


def test_a_file_that_unpacks_to_more_than_is_allowed_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training().profile().save(tmp_path / "step.npz")

    assert main(["view", str(tmp_path / "step.npz"), "--max-bytes", "1 KiB"]) == 2
    told = capsys.readouterr().err
    assert "It unpacks to more than 1.00 KiB" in told
    assert "--max-bytes" in told


def test_an_estimate_with_its_batch_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "told.py").write_text(
        "import torch\ndef pair():\n    return torch.nn.Linear(512, 512), torch.zeros(8, 512)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    code = main(["estimate", "told:pair", "--engine", "fake", "--gpu", "t4", "--batch-size", "8", "16", "--json", "-"])

    found = json.loads(capsys.readouterr().out)
    assert (code, found["kind"], found["result"]["engine"], found["result"]["fits"]) == (0, "estimate", "fake", True)
    assert [each["batch_size"] for each in found["batch_sizes"]] == [8, 16]
    assert found["batch_sizes"][0]["peak_allocated"] == found["result"]["devices"][0]["peak_allocated"]
    assert found["result"]["gpu"]["name"] == "t4"


def test_a_layer_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "layered.py").write_text("import torch\ndef model():\n    return torch.nn.Linear(784, 10)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["summary", "layered:model", "--engine", "fake", "--gpu", "t4", "--input-size", "784"]

    code = main([*arguments, "--batch-size", "64", "--json", "-"])

    found = json.loads(capsys.readouterr().out)
    assert (code, found["kind"], found["fits"], found["batch_size"]) == (0, "summary", True, 64)
    assert (found["parameters"], found["multiply_adds"]) == (7850, 64 * 7840)
    assert [(each["name"], each["output_shape"]) for each in found["layers"]] == [("Linear", [64, 10])]
    assert main(["summary", "layered:model", "--gpu", "t4"]) == 2
    assert "neither a batch nor an input_size" in capsys.readouterr().err


def test_a_comparison_and_its_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = training().profile(), training(bytes_per_number=8).profile()
    files = [str(tmp_path / "a.npz"), str(tmp_path / "b.npz")]
    before.save(files[0])
    after.save(files[1])

    assert main(["compare", *files, "--fail-above", "2%", "--json", "-"]) == 1

    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], [found["before"], found["after"]]) == ("compare", files)
    assert (found["fail_above"], found["exceeded"]) == ("2%", True)
    assert found["devices"] == json.loads(json.dumps(vramkit.compare(before, after).to_dict()["devices"]))
    assert main(["compare", *files, "--json", str(tmp_path / "c.json")]) == 0
    assert capsys.readouterr().out == f"{vramkit.compare(before, after)}\n"
    assert json.loads((tmp_path / "c.json").read_text())["exceeded"] is None


def test_every_verb_has_it_and_the_page_says_what_each_writes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    verbs = re.findall(r"^    (\w+) ", capsys.readouterr().out, re.MULTILINE)
    page = (Path(vramkit.__file__).parents[1] / "docs" / "json.md").read_text()

    assert {"run", "compare", "summary"} <= {*verbs}
    for verb in verbs:
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        assert re.search(r"--json \[?FILE", capsys.readouterr().out)
        assert f"\n| `{verb}` | `" in page


def test_the_page_names_every_figure_of_a_result_and_of_a_comparison() -> None:
    story = training()
    story.alloc(MIB, Category.OTHER, stack=[("/me/train.py", 7, "step")], operator="aten::mm")
    story.event(Action.OOM, MIB, Phase.BACKWARD)
    result = story.profile()
    page = (Path(vramkit.__file__).parents[1] / "docs" / "json.md").read_text()

    def keys(value: Any) -> Iterator[str]:
        for key, part in value.items() if isinstance(value, dict) else ():
            yield key
            yield from keys(part) if key not in ("highest", "versions") else ()
        for part in value if isinstance(value, list | tuple) else ():
            yield from keys(part)

    written = {
        *keys(result.to_dict()),
        *keys(vramkit.compare(training(bytes_per_number=8).profile(), result).to_dict()),
    }
    assert {"breakdown", "largest_lines", "size_before"} <= written
    assert written - {*re.findall(r"`(\w+)`", page)} == set()


def test_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")

    assert main(["demo", "--device", "cpu", "--steps", "2", "--json", "-"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], len(found["losses"]), found["ran_out"]) == ("demo", 2, False)
    assert len(found["result"]["devices"][0]["steps"]) == 2
    assert [each["batch_size"] for each in found["with_adam"]] == [each["batch_size"] for each in found["with_sgd"]]
