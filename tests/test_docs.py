"""Every Python block of the documentation runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("vramkit/**/*.md")])
ACTIVATE = "import vramkit.virtual_gpu; vramkit.virtual_gpu.activate('a100-40gb')\n"


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def pages() -> list[object]:
    """Pages with Python in them; those that switch the virtual GPU on need it."""
    found = []
    for page in PAGES:
        code = "\n".join(blocks(page))
        if code:
            marks = [pytest.mark.virtual_gpu] if "virtual_gpu.activate" in code else []
            found.append(pytest.param(page, marks=marks, id=str(page.relative_to(ROOT))))
    return found


@pytest.mark.parametrize("page", pages())
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, virtual_gpu_is_there: bool) -> None:
    code = "\n".join(blocks(page))
    if virtual_gpu_is_there and "virtual_gpu.activate" not in code:
        code = ACTIVATE + code

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)

    if 'Install it: pip install "vramkit[' in result.stderr:
        pytest.skip(result.stderr.splitlines()[-1])
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())

    assert [target for target in targets if not (page.parent / target).exists()] == []
