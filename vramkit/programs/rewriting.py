"""Changes of a program as Python source, which runs beside the program's objects where these have arrived.

Knows what names the source finds and what becomes of those that it sets; knows no change. That the source itself is
run, and not something that should come to the same, makes a figure that of the code that was shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .batches import moved
from .program import Program, Rewrite


class Rewriting:
    """One run of a rewrite.

    Args:
        rewrite: to be run.
        program: whose objects it finds; they are changed.
        names: what else it finds.
    """

    def __init__(self, rewrite: Rewrite, program: Program, names: dict[str, object]) -> None:
        self._rewrite = rewrite
        models = [*program.models.values()]
        self._names: dict[str, Any] = {
            "torch": torch,
            "models": models,
            "loss": program.loss,
            "to_cuda": lambda batch: moved(batch, "cuda"),
            "take_place": take_place,
            **names,
        }
        if len(models) == 1:
            self._names["model"] = models[0]

    def on_cpu(self) -> None:
        """Change what is to be moved to the device."""
        self._run(self._rewrite.on_cpu, "changes before the models are moved")

    def on_gpu(
        self, optimizers: Sequence[torch.optim.Optimizer]
    ) -> tuple[Sequence[torch.optim.Optimizer], Callable[[object], object] | None]:
        """Change the rest.

        Returns:
            The optimizers, and the step if there is a new one.
        """
        self._names["optimizers"] = optimizers
        if len(optimizers) == 1:
            self._names |= {"optimizer": optimizers[0], "parameters": own_groups(optimizers[0])}
        self._run(self._rewrite.on_gpu, "changes of the step")
        if len(optimizers) == 1:
            optimizers = (self._names["optimizer"],)
        return optimizers, self._names.get("train_step")

    def _run(self, source: str, called: str) -> None:
        exec(compile(source, f"<{called}>", "exec"), self._names)


def own_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, object]]:
    """An optimizer's groups of parameters as it was given them: with those options that are not its defaults."""
    return [
        {name: value for name, value in group.items() if not _is_default(optimizer, name, value)}
        for group in optimizer.param_groups
    ]


def _is_default(optimizer: torch.optim.Optimizer, name: str, value: object) -> bool:
    return name in optimizer.defaults and bool(optimizer.defaults[name] == value)


def take_place(old: torch.optim.Optimizer, new: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Make an optimizer that a step refers to what a new one is; hooks on it stay.

    Args:
        old: keeps its identity, and is returned.
        new: of the same class.
    """
    vars(old).update({name: value for name, value in vars(new).items() if "hooks" not in name})
    return old
