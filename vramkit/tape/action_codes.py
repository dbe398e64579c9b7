"""Codes of `Action` as plain integers, for loops that run once for every event: Python compares these faster.

Knows nothing beside `Action`.
"""

from __future__ import annotations

from .events import Action

ALLOC, FREE, FREE_COMPLETED, SEGMENT_ALLOC, SEGMENT_FREE, SEGMENT_MAP, SEGMENT_UNMAP, OOM = map(int, Action)
