"""Packages that only some exports need. Knows which extra brings each."""

from __future__ import annotations

import importlib
from types import ModuleType

from ..errors import UsageError


def load(asked: str, module: str, extra: str) -> ModuleType:
    """Import a package that an extra of vramkit's brings.

    Args:
        asked: what needs it, as an error's text begins.
        module: its name.
        extra: of vramkit.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:  # it is there, and lacks something itself
            raise
        raise UsageError(
            asked,
            f"{package} is not installed",
            "vramkit needs it for this alone",
            f'Install it: pip install "vramkit[{extra}]"',
        ) from error
