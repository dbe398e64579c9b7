"""Which operators the forward of some modules runs, on one side and on the other. Knows tapes; writes no sentence.

Only what allocates is on a tape: no views, and nothing that works in place. Names are compared that mean the same
wherever they were seen, torch's own without a node; what a recording on CUDA can't name is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..tape.events import Phase
from .pair import Side

_OF_TORCH = "aten::"
_SAYS_NOTHING = ("aten::empty", "aten::new_empty")  # what some kernels make their results with, under no other name
_ATTENTION = {
    "aten::_scaled_dot_product_flash_attention": "flash",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "flash",
    "aten::_scaled_dot_product_efficient_attention": "efficient",
    "aten::_scaled_dot_product_cudnn_attention": "cuDNN",
    "aten::_scaled_dot_product_fused_attention_overrideable": "fused",
    "aten::_safe_softmax": "math",  # nothing else calls it
}
"""What `torch.nn.functional.scaled_dot_product_attention` runs, by torch.nn.attention.SDPBackend's names."""


def forward_operators(side: Side, places: Sequence[int]) -> dict[str, int]:
    """The operators that allocated in the forward of some modules, each with the bytes of all that it made.

    Args:
        side: one of two results.
        places: of the modules, in ``Pair.modules``.

    Returns:
        The one that made most first; empty where the recording knows no operator there, or has lost its beginning.
    """
    tape = side.result.tape
    if side.result.is_window or not tape.operators:
        return {}
    table = tape.allocations
    forward = np.isin(table["phase"], (Phase.FORWARD, Phase.RECOMPUTE)) & (table["operator"] > 0)
    table = table[forward & np.isin(np.append(side.place, -1)[table["module"]], places)]
    sums: dict[str, int] = {}
    for number in np.unique(table["operator"]).tolist():
        name = tape.operators[number - 1]
        if _is_comparable(name):
            sums[name] = int(table["requested"][table["operator"] == number].sum())
    return dict(sorted(sums.items(), key=lambda each: -each[1]))


def attention_kernel(operators: dict[str, int]) -> str:
    """Which of torch's attention kernels is among some operators; empty: none, or several."""
    found = {_ATTENTION[name] for name in operators if name in _ATTENTION}
    return found.pop() if len(found) == 1 else ""


def _is_comparable(name: str) -> bool:
    return name.startswith(_OF_TORCH) and "(" not in name and not name.startswith(_SAYS_NOTHING)
