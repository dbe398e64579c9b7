"""What a model trains for nothing. Knows modules; runs nothing."""

from __future__ import annotations

from torch import nn


def untrained(model: nn.Module, trained: set[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What requires gradients, although no optimizer trains it.

    Args:
        model: is looked at.
        trained: ids of what optimizers train.

    Returns:
        Paths of modules of which nothing is trained, outermost first, and of parameters beside them.
    """
    modules: list[str] = []
    parameters: list[str] = []

    def look(module: nn.Module, path: str) -> None:
        asking = [each for each in module.parameters() if each.requires_grad]
        if not asking:
            return
        if path and not any(id(each) in trained for each in asking):
            modules.append(path)
            return
        for name, each in module.named_parameters(recurse=False):
            if each.requires_grad and id(each) not in trained:
                parameters.append(f"{path}.{name}" if path else name)
        for name, child in module.named_children():
            look(child, f"{path}.{name}" if path else name)

    look(model, "")
    return tuple(modules), tuple(parameters)
