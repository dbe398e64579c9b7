"""What of a model is trained: all of it, adapters, or what is not frozen. Knows PEFT; no library of models."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..errors import UsageError
from ..exports import optional
from .recipe import Recipe

_RANK = 8  # PEFT's own default


def apply(model: torch.nn.Module, recipe: Recipe) -> torch.nn.Module:
    """The model, made ready for a method.

    Raises:
        UsageError: the method can't be had for it.
    """
    if not recipe.trains:
        return model.eval()  # and no more, as in a script: of what could be trained autocast keeps its copies
    model.train()
    if recipe.method == "lora":
        return _with_adapters(model, recipe)
    if recipe.frozen_blocks:
        _freeze(model, recipe)
    return model


def _with_adapters(model: torch.nn.Module, recipe: Recipe) -> torch.nn.Module:
    peft = optional.load(recipe.asked, "peft", "integrations")
    targets: str | list[str] | None = recipe.lora_targets
    if isinstance(targets, str) and targets != "all-linear":
        targets = [each.strip() for each in targets.split(",")]
    try:
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=recipe.lora or _RANK, target_modules=targets))
    except ValueError as error:
        raise UsageError(
            recipe.asked,
            f"PEFT refuses: {error}",
            instead='Name what gets adapters: lora_targets="all-linear", or names of modules such as "qkv,proj"',
        ) from error
    except ImportError as error:  # of a package that it looks at, such as an old torchao
        raise UsageError(
            recipe.asked, f"PEFT refuses: {error}", instead="Install what it names, or remove that"
        ) from error
    assert isinstance(adapted, torch.nn.Module)
    return adapted.train()


def _freeze(model: torch.nn.Module, recipe: Recipe) -> None:
    """The first blocks, and every parameter that is registered before them."""
    name, blocks = _blocks(model)
    if recipe.frozen_blocks > len(blocks):
        raise UsageError(
            recipe.asked,
            f"with method={recipe.method!r}, and the model has {len(blocks)} blocks ({name or 'its own parts'})",
            instead="Freeze at most so many",
        )
    left = {id(parameter) for parameter in blocks[recipe.frozen_blocks - 1].parameters()}
    for parameter in model.parameters():  # in the order of registration
        if not left:
            break
        parameter.requires_grad_(False)
        left.discard(id(parameter))


def _blocks(model: torch.nn.Module) -> tuple[str, list[torch.nn.Module]]:
    """The parts of a model's largest list of blocks; the lists, where there are several side by side, as the stages of
    a ResNet; without any, the model's own parts. And their names, for people.
    """
    name, lists = "", dict[str, torch.nn.Module]()
    for place, module in model.named_modules():  # from the outside in: of a list of stages not the blocks in these
        found = {child: each for child, each in module.named_children() if _is_list(each)}
        if sum(map(_size, found.values())) > sum(map(_size, lists.values())):
            name, lists = place, found
    names = ", ".join(f"{name}.{child}".lstrip(".") for child in lists)
    if len(lists) > 1:
        return names, [*lists.values()]
    return names, [*_parts(*lists.values() or [model])]


def _is_list(module: torch.nn.Module) -> bool:
    """Whether it is a list of blocks: of modules with parts of their own, unlike the layers of a classifier."""
    if not isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential)):
        return False
    parts = [*_parts(module)]
    return len(parts) > 1 and all(any(True for _ in each.children()) for each in parts)


def _parts(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    return (each for each in module.children() if _size(each))


def _size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
