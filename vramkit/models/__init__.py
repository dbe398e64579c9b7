"""Models by name: what is trained, and one step of its training, from a configuration alone."""

from __future__ import annotations

from .loaded import Loaded
from .loading import load

__all__ = ["Loaded", "load"]
