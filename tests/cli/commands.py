"""The command line in a process of its own, as a shell starts it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

Done = subprocess.CompletedProcess[str]


def command(*arguments: str, folder: Path | None = None, environment: dict[str, str] | None = None) -> Done:
    """``vramkit`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "vramkit", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
    )


def write(path: Path, code: str) -> Path:
    """A script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(code))
    return path


def flat(text: str) -> str:
    """A text without its line breaks."""
    return " ".join(text.split())
