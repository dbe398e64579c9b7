"""The module that each allocation of a tape belongs to. Knows how tensors are named; sums up nothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .events import Category, Ints, Tape


def owners(tape: Tape) -> Ints:
    """The module that each allocation belongs to: index into ``Tape.modules``, -1 for none; shape ``(allocations,)``.

    A parameter, its gradient and its state belong to the module that has the parameter, whoever made them; everything
    else to the module in whose forward or backward it was made. A library's workspace belongs to nobody: the first
    module that needs it is not to blame.
    """
    index = {module.name: i for i, module in enumerate(tape.modules)}
    named = [_module_of(name, index) for name in tape.names]
    by_name = np.array([*named, -1], np.int64)[tape.allocations["name"]]  # a name of -1 takes the last item
    category = tape.allocations["category"]
    made_in = tape.allocations["module"].astype(np.int64)
    return np.where(
        category == Category.WORKSPACE,
        -1,
        np.where((tape.allocations["name"] >= 0) & (category != Category.OUTPUT), by_name, made_in),
    )


def _module_of(name: str, index: Mapping[str, int]) -> int:
    """The module that has a tensor, by its name; -1: none.

    "GPT.blocks.0.up.weight", "exp_avg of GPT.blocks.0.up.weight", "GPT.blocks.0.up.weight.quant_state.absmax"
    """
    module = name.rpartition(" of ")[2].rpartition(".")[0]
    while module and module not in index:
        module = module.rpartition(".")[0]
    return index.get(module, -1)
