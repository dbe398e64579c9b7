"""The handles of hooks, as torch gives them. Knows how they are given up where several threads do it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any


def drop(handles: list[Any]) -> None:
    """Detach hooks, and forget their handles. Where another thread does so too, each handle is one's, never both's."""
    with suppress(IndexError):
        while handles:
            handles.pop().remove()
