"""Says each figure again: its program in a process of its own, on the virtual twin of its card."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .figures import Figure

_ROOT = Path(__file__).parents[2]
_PROGRAM = """
import dataclasses, json, sys
sys.path.insert(0, {root!r})
from vramkit import gpus, virtual_gpu
card = gpus.find({gpu!r})
virtual_gpu.activate(dataclasses.replace(card, context={context!r} or card.context))
{setup}
print("RESULT" + json.dumps({call}))
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A figure, and what its program says here."""

    figure: Figure
    bytes: int | None
    """None: it failed."""
    failure: str = ""

    @property
    def equal(self) -> bool:
        """To every digit that was published."""
        source, value = self.figure.source, self.figure.value
        if self.bytes is None:
            return False
        if source.digits is None:
            return float(np.float32(self.bytes / source.size)) == value
        return round(self.bytes / source.size, source.digits) == value

    @property
    def difference(self) -> float:
        """Ours beside theirs, as a part of theirs."""
        assert self.bytes is not None
        return self.bytes / (self.figure.value * self.figure.source.size) - 1


def say(figure: Figure, *, python: str = sys.executable) -> Row:
    """Runs the program of a figure.

    Args:
        figure: which.
        python: the interpreter, and so the torch.
    """
    source = figure.source
    program = _PROGRAM.format(
        root=str(_ROOT), gpu=source.gpu, context=source.context, setup=source.setup, call=figure.call
    )
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode:
        return Row(figure, None, (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1])
    return Row(figure, json.loads(done.stdout.rsplit("RESULT", 1)[1]))
