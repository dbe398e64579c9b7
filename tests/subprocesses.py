"""Runs Python in a fresh process on a virtual GPU of one's choice, and hands its answer back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vramkit import GPU

_HERE = Path(__file__).parent
_FRAME = """
import json, sys
sys.path[:0] = {folders!r}
from vramkit import GPU, virtual_gpu
gpu = virtual_gpu.activate({gpu!r}, **{settings!r})
{code}
print("RESULT" + json.dumps(result))
"""


def run_on(gpu: str | GPU, code: str, *, environment: dict[str, str] | None = None, **settings: Any) -> Any:
    """What ``result`` is after a snippet ran in a process of its own, with ``gpu`` the active virtual GPU.

    Args:
        gpu: the card.
        code: statements that set ``result`` to something JSON can carry.
        environment: variables on top of this process's, such as the allocator's configuration.
        settings: of ``virtual_gpu.activate``.
    """
    folders = [str(_HERE), str(_HERE / "virtual_gpu")]
    text = _FRAME.format(folders=folders, gpu=gpu, settings=settings, code=textwrap.dedent(code))
    return json.loads(run_python(text, environment=environment).rsplit("RESULT", 1)[1])


def run_python(code: str, *, environment: dict[str, str] | None = None) -> str:
    """What a snippet prints in a process of its own.

    Raises:
        AssertionError: it did not end with status 0.
    """
    surroundings = {**os.environ, **(environment or {})}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=surroundings)
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running ``code``."""
    script = f"{code}\nimport sys; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in result.stdout.split()}
