"""What CUDA's kernels take beside their results, and in which order: a table of rules, one file for each family.

Every rule was found by holding fakes against the virtual GPU (``vramkit.devtools.tapediff``).
"""

from __future__ import annotations

from . import (
    attention,
    convolution,
    distances,
    elementwise,
    indexing,
    losses,
    matmul,
    normalization,
    pooling,
    recurrent,
    reductions,
    sampling,
    scans,
    sorting,
)
from .dtype_checks import check_types
from .registry import RULES, rule_of

FAMILIES = (
    attention,
    convolution,
    distances,
    elementwise,
    indexing,
    losses,
    matmul,
    normalization,
    pooling,
    recurrent,
    reductions,
    sampling,
    scans,
    sorting,
)
"""The files that fill the table."""

__all__ = ["FAMILIES", "RULES", "check_types", "rule_of"]
