"""What tests of other frameworks need. Where ``.ci/run`` says that it has to be there, they fail and don't skip."""

from __future__ import annotations

import importlib.util
import os


def missing(*packages: str) -> str:
    """Why tests that need some packages are skipped; empty: they are not."""
    if os.environ.get("VRAMKIT_REQUIRE_INTEGRATIONS") == "1":
        return ""
    lacking = [each for each in packages if importlib.util.find_spec(each) is None]
    return f'{", ".join(lacking)} not installed: pip install "vramkit[test]"' if lacking else ""
