"""The gate in pytest: tests with the marker, run by another pytest, as a user's are."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from planted_cases import CASES

from vramkit import gpus

HERE = Path(__file__).parent
FLAGS = ("-p", "vramkit.integrations.pytest", "-p", "no:cacheprovider", "-q")


def run_pytest(folder: Path, *arguments: str, **environment: str) -> dict[str, str]:
    """What each test came to: empty, or the text of its failure or of why it was skipped. ``""``: all that was said."""
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # with -p: also where vramkit is installed, with its entry point
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *FLAGS, f"--junitxml={report}", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **alone, **environment},
        check=False,
    )
    found = {"": done.stdout + done.stderr}
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
        told = [each for each in case if each.tag in ("failure", "error", "skipped")]
        found[case.attrib["name"]] = "".join(f"{each.attrib['message']}\n{each.text}" for each in told)
    return found


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with tests of both kinds, and what they came to while baselines were kept."""
    folder = tmp_path_factory.mktemp("program")
    shutil.copy(HERE / "planted_cases.py", folder)
    shutil.copy(HERE / "planted_regressions.py", folder / "test_planted.py")
    shutil.copy(HERE / "gated_tests.py", folder / "test_gated.py")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers -W error\n")
    return folder, run_pytest(folder, "--vramkit-update")


@pytest.mark.virtual_gpu
def test_a_test_with_the_marker_has_its_card_its_limit_and_its_profile(kept: tuple[Path, dict[str, str]]) -> None:
    _, found = kept

    passed = {name for name, text in found.items() if name and not text}
    assert passed >= {
        "test_within[1]",
        "test_within[2]",
        "test_asks_by_the_fixture_alone",
        "test_is_not_skipped_for_lack_of_cuda",
        "test_without_the_marker_is_run_here",
    }
    assert "GPU memory is over its limit" in found["test_over"]
    assert "NVIDIA L4" in found["test_over"]
    assert "Most is held by Linear (Linear): 4.00 MiB at the peak, 4.00 MiB of it parameters." in found["test_over"]
    assert "= reserved" in found["test_over"]
    assert "16.0 GiB (17,179,869,184 B) were asked for" in found["test_runs_out_of_memory"]
    assert "The test's process ended with status 3" in found["test_dies"]
    assert "'3 giga'" in found["test_has_a_limit_that_is_none"]
    assert "1 xfailed" in found[""]
    assert "GPU memory is over its limit" in found["test_over_too"]


@pytest.mark.virtual_gpu
def test_each_planted_regression_is_caught_and_named(kept: tuple[Path, dict[str, str]]) -> None:
    folder, at_first = kept

    workers = ("-p", "xdist", "-n", "1") if importlib.util.find_spec("xdist") else ()
    found = run_pytest(folder, "test_planted.py", *workers, PLANTED="1")

    assert [at_first[f"test_memory[{case}]"] for case in CASES] == [""] * 10
    for case, place in CASES.items():
        text = found[f"test_memory[{case}]"]
        assert "GPU memory grew by more than 1% since the baseline" in text, case
        assert re.search(rf"  (module|tensor): .*\b{re.escape(place)}\b", text), f"{case}\n{text}"
        assert re.search(r"  line:   \+.* by test_planted\.py:\d+", text), case
        assert f"pytest --vramkit-update test_planted.py::test_memory[{case}]" in text


@pytest.mark.virtual_gpu
def test_a_baseline_that_is_not_there_fails_and_a_file_that_uses_cuda_when_it_is_imported_runs(tmp_path: Path) -> None:
    (tmp_path / "test_early.py").write_text(
        "import sys, pytest, torch\n"
        "if 'vramkit.integrations.pytest_start' in sys.modules:\n"
        "    early = torch.zeros(1, device='cuda')\n"
        "@pytest.mark.gpu_memory(gpu='t4', baseline=True)\n"
        "@pytest.mark.parametrize('card', ['Tesla T4'])\n"
        "def test_early(card):\n"
        "    assert torch.cuda.get_device_name() == card and early.is_cuda\n"
        "@pytest.mark.gpu_memory(gpu='l4')\n"
        "def test_other_card():\n"
        "    assert torch.cuda.get_device_name() == 'NVIDIA L4'\n"
        "    print('said by a test')\n"
    )

    found = run_pytest(tmp_path, "-s")

    assert found["test_other_card"] == ""
    assert "said by a test" in found[""]
    assert "There is no baseline" in found["test_early[Tesla T4]"]
    assert not (tmp_path / "gpu_memory").exists()


def test_a_marker_with_an_argument_that_there_is_not_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n@pytest.mark.gpu_memory(limits='1 GiB')\ndef test_it():\n    pass\n"
    )

    assert "test_it.py::test_it: gpu_memory(*, limit:" in run_pytest(tmp_path)[""]


def test_without_such_a_test_nothing_is_imported(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\ndef test_it():\n    assert not {'torch', 'numpy', 'vramkit.gpus'} & set(sys.modules)\n"
    )

    assert run_pytest(tmp_path)["test_it"] == ""


def test_where_no_real_gpu_is_a_test_that_wants_one_is_skipped_or_fails_on_demand(tmp_path: Path) -> None:
    if gpus.cuda_devices():
        pytest.skip("there is one")
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.gpu_memory(gpu='t4')\ndef test_first():\n    pass\n"
        "@pytest.mark.gpu_memory(gpu='real')\ndef test_it():\n    pass\n"
    )

    skipped = run_pytest(tmp_path, "-k", "not first", VRAMKIT_REQUIRE_VIRTUAL_GPU="0")
    failed = run_pytest(tmp_path, VRAMKIT_REQUIRE_VIRTUAL_GPU="1")

    assert "1 skipped" in skipped[""]
    assert "the driver lists none" in failed["test_it"].lower()


def test_where_no_virtual_gpu_can_be_a_test_is_skipped_or_fails_on_demand(
    tmp_path: Path, virtual_gpu_is_there: bool
) -> None:
    if virtual_gpu_is_there:
        pytest.skip("there is one")
    (tmp_path / "test_it.py").write_text("def test_it(gpu_memory):\n    pass\n")

    skipped = run_pytest(tmp_path, VRAMKIT_REQUIRE_VIRTUAL_GPU="0")
    failed = run_pytest(tmp_path, VRAMKIT_REQUIRE_VIRTUAL_GPU="1")

    assert "1 skipped" in skipped[""]
    assert "1 failed" in failed[""]
