"""Puts a virtual GPU under torch where that can be done, and lets benchmarks find what the tests train and record."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vramkit import DeviceError, virtual_gpu

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "allocator")]

if virtual_gpu.current() is None:
    try:
        virtual_gpu.activate("a100-80gb")
    except DeviceError:  # elsewhere the CPU is measured
        if os.environ.get("VRAMKIT_REQUIRE_VIRTUAL_GPU") == "1":
            raise
