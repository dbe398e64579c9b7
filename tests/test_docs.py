"""Every Python block of the documentation runs and prints what its page says, and Sphinx builds the pages."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vramkit

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TUTORIAL = DOCS / "tutorial.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("vramkit/**/*.md")])
ACTIVATE = "import vramkit.virtual_gpu; vramkit.virtual_gpu.activate('a100-40gb')\n"
TORCH = "2.14."  # whose figures the pages show
FIGURE = re.compile(r"\d[\d,]*(?:\.\d+)? ?(?:B|KiB|MiB|GiB|%)(?!\w)|\d{1,3}(?:,\d{3})+")


def fences(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def is_printed(figure: str, printed: str) -> bool:
    """Whether a figure of the prose is printed; large numbers may have their unit elsewhere, as in a table."""
    number = figure.removesuffix(" B") if "," in figure else figure
    return bool(re.search(rf"(?<![\d,.]){re.escape(number)}(?![\d,])".replace(r"\ ", " ?"), printed))


def pages() -> list[object]:
    """Pages with Python in them; those that switch the virtual GPU on, or are of a job's ranks, need it."""
    found = []
    for page in PAGES:
        code = "\n".join(fences(page, "python"))
        if code:
            marks = [pytest.mark.virtual_gpu] if "virtual_gpu.activate" in code or "world_size=" in code else []
            found.append(pytest.param(page, marks=marks, id=str(page.relative_to(ROOT))))
    return found


@pytest.mark.parametrize("page", pages())
def test_the_python_of_a_page_runs_and_prints_what_the_page_says(
    page: Path, tmp_path: Path, virtual_gpu_is_there: bool
) -> None:
    code = "\n".join(fences(page, "python"))
    if virtual_gpu_is_there and "virtual_gpu.activate" not in code:
        code = ACTIVATE + code

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)

    if 'Install it: pip install "vramkit[' in result.stderr:
        pytest.skip(result.stderr.splitlines()[-1])
    assert result.returncode == 0, result.stderr
    if virtual_gpu_is_there and importlib.metadata.version("torch").startswith(TORCH):
        assert [shown for shown in fences(page, "output") if shown not in result.stdout] == []
        if page == TUTORIAL:
            told = FIGURE.findall(prose(page))
            assert told
            assert [figure for figure in told if not is_printed(figure, result.stdout)] == []
    if page == TUTORIAL:
        drawn = {picture.name for picture in tmp_path.glob("*.png")}
        assert drawn == set(re.findall(r"\(images/([\w-]+\.png)\)", prose(page)))


def test_a_figure_that_is_not_printed_is_found() -> None:
    printed = "a 3,136\nb 91.9%\nc 10,512 B\n"

    assert [text for text in ("3,136 B", "91.9 %", "512 B", "136 B") if is_printed(text, printed)] == [
        "3,136 B",
        "91.9 %",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", prose(page))

    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_reference_has_every_public_name() -> None:
    entries = [
        entry
        for page in (DOCS / "reference").glob("*.md")
        for entry in re.findall(r"^\.\. auto\w+:: (\S+)$", page.read_text(), re.MULTILINE)
    ]

    assert sorted(entries) == sorted(f"vramkit.{name}" for name in vramkit.__all__)


def test_sphinx_builds_the_pages_without_a_warning(tmp_path: Path) -> None:
    if missing := [name for name in ("sphinx", "furo", "myst_parser") if importlib.util.find_spec(name) is None]:
        reason = f'{", ".join(missing)} not installed: pip install "vramkit[docs]"'
        if os.environ.get("VRAMKIT_REQUIRE_SPHINX") == "1":
            pytest.fail(reason)
        pytest.skip(reason)

    result = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", tmp_path / "state", DOCS, tmp_path / "site"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )

    assert result.returncode == 0, result.stderr
