"""Processes of their own: each runs one task on the card or on a virtual one, and hands back plain data.

    python -m benchmarks.real_gpu.tasks KIND NAME DEVICE FILE

A task that wants the card for itself imports first and then waits for a line on its standard input: others import
while it measures.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CARD = "card"
"""The device's name where it is no virtual one; others are `vramkit.GPU` as JSON."""


@dataclass
class Task:
    """One process."""

    kind: str
    """"program", "context", "facts", "addresses" or "build"."""
    name: str
    device: str
    stands_for: str = ""
    """`CARD`, where a virtual device stands in for the card."""
    environment: dict[str, str] = field(default_factory=dict)
    limit: float = 90.0
    """Seconds."""
    _process: subprocess.Popen[bytes] | None = None
    _room: tempfile.TemporaryDirectory[str] | None = None
    _begin: float = 0.0

    def start(self) -> None:
        """Start the process."""
        self._room = tempfile.TemporaryDirectory(prefix="real-gpu-", ignore_cleanup_errors=True)
        room = Path(self._room.name)
        environment = {key: value for key, value in os.environ.items() if "ALLOC_CONF" not in key}
        environment |= {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", "")))),
            "OMP_NUM_THREADS": "2",
            "TORCHINDUCTOR_CACHE_DIR": str(room / "inductor"),
            "TRITON_CACHE_DIR": str(room / "triton"),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            **self.environment,
        }
        with open(room / "said", "wb") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.tasks", self.kind, self.name, self.device, str(room / "answer")],
                env=environment, stdin=subprocess.PIPE, stdout=said, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._begin = time.monotonic()

    def go(self) -> None:
        """Let one that waits begin, once it is ready."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._begin = time.monotonic()
        with contextlib.suppress(OSError):
            self._process.stdin.write(b"go\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        """End it, and the whole group of processes that it started: a compiler has helpers."""
        assert self._process is not None
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def waits(self) -> bool:
        """Whether it imports first, and then waits to be let go: it wants the card for itself."""
        return self.kind in ("context", "facts", "addresses")

    def is_ready(self) -> bool:
        """Whether one that waits has imported what it needs, or has ended."""
        assert self._process is not None
        assert self._room is not None
        return Path(self._room.name, "answer.ready").exists() or self._process.poll() is not None

    def finish(self, deadline: float) -> dict[str, Any]:
        """Wait for its end. Returns the entry for the file; of a failure it says how."""
        assert self._process is not None
        assert self._room is not None
        room = Path(self._room.name)
        failure = None
        try:
            status = self._process.wait(max(1.0, min(self._begin + self.limit, deadline) - time.monotonic()))
            failure = f"ended with status {status}" if status else None
        except subprocess.TimeoutExpired:
            failure = "stopped at its limit of time"
        self.kill()
        entry: dict[str, Any] = {
            "kind": self.kind,
            "name": self.name,
            "device": CARD if CARD in (self.device, self.stands_for) else "twin",
            "seconds": round(time.monotonic() - self._begin, 2),
        }
        if self.environment:
            entry["environment"] = self.environment
        if (room / "answer").exists():
            entry |= json.loads((room / "answer").read_text(encoding="utf-8"))
        if failure:
            entry["failure"] = failure
            entry["said"] = (room / "said").read_text(encoding="utf-8", errors="replace")[-3000:]
        self._room.cleanup()
        return entry


def main(kind: str, name: str, device: str, path: str) -> None:
    """Be the process of a task."""
    warnings.simplefilter("ignore")
    if device != CARD:
        from vramkit import GPU, virtual_gpu

        described = json.loads(device)
        virtual_gpu.activate(GPU(**{**described, "capability": tuple(described["capability"])}))

    def answer(found: dict[str, Any]) -> None:
        Path(path + ".part").write_text(json.dumps(found), encoding="utf-8")
        os.replace(path + ".part", path)

    def wait() -> None:
        Path(path + ".ready").touch()
        sys.stdin.readline()

    if kind == "program":
        from . import recording

        recording.run(name, answer)
    elif kind == "context":
        from . import context

        context.measure(name, wait, answer)
    elif kind == "facts":
        from . import facts

        answer(facts.facts(wait))
    elif kind == "addresses":
        from . import addresses

        addresses.measure(wait, answer)
    elif kind == "build":  # what virtual devices need is compiled once, by the first of them
        import torch

        torch.zeros(1, device="cuda")
        answer({"torch": torch.__version__})


if __name__ == "__main__":
    main(*sys.argv[1:])
