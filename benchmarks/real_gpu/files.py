"""The file that is sent in: one line of JSON for each result, each compressed by itself, so that it is whole whenever a
run ends.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_lock = threading.Lock()


def append(path: Path, entry: dict[str, Any]) -> None:
    """Add a result."""
    packed = gzip.compress((json.dumps(entry, separators=(",", ":")) + "\n").encode(), 9)
    with _lock, open(path, "ab") as file:
        file.write(packed)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The results, as they were added; a last one that was cut off is left out."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        try:
            for line in lines:
                yield json.loads(line)
        except (EOFError, gzip.BadGzipFile, json.JSONDecodeError):
            return
