"""What a test of a benchmark needs; where ``.ci/run`` says that it has to be there, its lack is no reason to skip."""

from __future__ import annotations

import os

import pytest

from vramkit import virtual_gpu

needs_virtual_gpu = pytest.mark.skipif(
    virtual_gpu.current() is None and os.environ.get("VRAMKIT_REQUIRE_VIRTUAL_GPU") != "1",
    reason="needs the virtual GPU",
)
