"""Whether the steps of a program used what was passed, as its tape shows it. Knows tapes; runs nothing."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ..errors import UsageError
from ..tape.events import Category, Module, Phase, Tape

_ARRIVE = (Category.PARAMETER, Category.BUFFER)


def check_use(tape: Tape, names: Collection[str]) -> None:
    """See that a step of the user's own did something with the models that were passed.

    Where no forward of theirs ran, it has at least to have used the GPU, and no other model: a step may do without
    ``forward``.

    Args:
        tape: of all steps, which ended well.
        names: of the models.

    Raises:
        UsageError: it did not.
    """
    calls, parameters = _by_model(tape.modules)
    if any(calls[name] for name in names if name in calls):
        return
    others = [name for name in calls if name not in names and calls[name] and parameters[name]]
    if not others and _uses_the_gpu(tape):
        return
    found = f"the step called {', '.join(others)}, and none of" if others else "the step did nothing with"
    raise UsageError(
        "vramkit.estimate was to run a training step",
        f"{found} the models that were passed ({', '.join(names)})",
        "Only what is passed is on the GPU when the step begins",
        "Pass every model that the step uses: vramkit.estimate([model, other], ...)",
    )


def _by_model(modules: tuple[Module, ...]) -> tuple[dict[str, int], dict[str, int]]:
    """Calls of a model and of the modules in it, and bytes of its parameters, by the model's name."""
    calls: dict[str, int] = {}
    parameters: dict[str, int] = {}
    roots: list[str] = []
    for module in modules:  # a parent comes before its children
        root = module.name if module.parent < 0 else roots[module.parent]
        roots.append(root)
        calls[root] = calls.get(root, 0) + module.calls
        parameters[root] = parameters.get(root, 0) + module.parameters
    return calls, parameters


def _uses_the_gpu(tape: Tape) -> bool:
    later = (tape.events["phase"] != Phase.OUTSIDE) | (tape.events["step"] > 0)
    arrived = np.isin(tape.allocations["category"], _ARRIVE)
    return bool(later.any() or not arrived.all())
