"""``vramkit compare``: what it prints, and the exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
from shown_pages import header_of
from subprocesses import loaded_by
from told_profiles import MIB, training

from vramkit.__main__ import main


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A saved profile, and as a snapshot of torch's one whose peak of allocated memory is 73.8 % higher."""
    training().profile(reserved=400 * MIB).save(tmp_path / "a.npz")
    training(bytes_per_number=8).profile(reserved=400 * MIB).to_memory_viz(tmp_path / "b.pickle")
    return str(tmp_path / "a.npz"), str(tmp_path / "b.pickle")


def test_two_files_of_any_kind_are_compared(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *files]) == 0

    printed = capsys.readouterr()
    assert "  = allocated                     130.0 MiB     226.0 MiB     +96.0 MiB" in printed.out
    assert printed.err == ""


@pytest.mark.parametrize(("limit", "code"), [("2%", 1), ("80%", 0), ("95 MiB", 1), ("1 GiB", 0)])
def test_growth_above_a_limit_is_status_1(
    limit: str, code: int, files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *files, "--fail-above", limit]) == code
    assert main(["compare", *files[::-1], "--fail-above", limit]) == 0

    text = capsys.readouterr().out
    assert f"\nPeak memory did not grow by more than {limit}.\n" in text
    assert (f"\nPeak memory grew by more than {limit}.\n" in text) == bool(code)


@pytest.mark.parametrize("limit", ["2", "-1%", "much"])
def test_a_limit_that_is_none_is_status_2(
    limit: str, files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *files, f"--fail-above={limit}"]) == 2

    assert capsys.readouterr().err.startswith("vramkit: ")


def test_a_file_that_is_none_is_status_2(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", files[0], __file__]) == 2

    assert "test_compare_cli.py" in capsys.readouterr().err


def test_comparing_and_exporting_need_no_torch(files: tuple[str, str], tmp_path: Path) -> None:
    code = f"""
from vramkit.__main__ import main
import vramkit
main(['compare', *{files!r}])
profile = vramkit.load({files[0]!r})
profile.to_perfetto({str(tmp_path / "trace.json")!r})
profile.to_memory_viz({str(tmp_path / "snapshot.pickle")!r})
profile._repr_html_()
"""
    assert not loaded_by(code) & {"torch", "pandas", "matplotlib"}


def test_the_page_is_of_the_second_with_the_first_beside_it(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.html"

    assert main(["compare", *files, "--html", str(path)]) == 0

    [shown] = header_of(path)["beside"]
    *_, (name, before, after), _ = shown["rows"]
    assert (name, after - before) == ("most allocated", 96 * MIB)
    assert capsys.readouterr().out.endswith("open it in a browser\n")
