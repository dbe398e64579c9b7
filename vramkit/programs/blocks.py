"""The repeated blocks of a model: what checkpoints are put on, and what is sharded. Knows modules; runs nothing."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def repeated_blocks(model: nn.Module) -> tuple[str, ...]:
    """Paths of the blocks that a model repeats: modules of one class beside each other, made of several modules.

    Of blocks inside blocks the outermost count. A sequence of sequences is looked into first: the stages of a ResNet
    are no blocks, what is in them is.
    """
    return tuple(_blocks(model, ""))


def _blocks(module: nn.Module, path: str) -> Iterator[str]:
    by_class: dict[type[nn.Module], list[tuple[str, nn.Module]]] = {}
    for name, child in module.named_children():
        by_class.setdefault(type(child), []).append((f"{path}.{name}" if path else name, child))
    for kind, children in by_class.items():
        within = [(where, list(_blocks(child, where))) for where, child in children]
        is_block = len(children) > 1 and not issubclass(kind, _CONTAINERS) and all(map(_has_parts, children))
        if is_block and not (kind is nn.Sequential and any(inner for _, inner in within)):
            yield from (where for where, _ in children)
        else:
            for _, inner in within:
                yield from inner


def _has_parts(child: tuple[str, nn.Module]) -> bool:
    """Whether it is made of modules, and has something to compute with."""
    own = [*child[1].children()]
    return bool(own) and any(True for _ in child[1].parameters())
