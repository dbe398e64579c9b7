"""The charts' library in the package is npm's, unchanged, with its licence beside it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess

import pytest

from vramkit.devtools.chartlib import ASSETS, FILES, HASHES, VERSION, from_npm


def test_the_library_is_the_version_that_is_named_and_unchanged() -> None:
    assert f"(v{VERSION})" in (ASSETS / "uplot.js").read_text(encoding="utf-8").partition("\n")[0]
    found = {name: hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() for name in FILES.values()}
    assert found == HASHES
    assert "MIT" in (ASSETS / "uplot.LICENSE").read_text(encoding="utf-8")


def test_npm_has_the_same_files() -> None:
    if shutil.which("npm") is None:
        pytest.skip("the library is compared with npm's, and npm is not installed")
    try:
        files = from_npm()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the library is compared with npm's, and npm got nothing: {error.stderr.strip()[:200]}")

    assert files == {name: (ASSETS / name).read_bytes() for name in FILES.values()}
