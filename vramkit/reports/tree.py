"""Trees of modules in which equal blocks are one node. Knows the modules of a tape, and nothing of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..events import Module


@dataclass
class Node:
    """Modules that are shown as one, and what is inside them."""

    name: str
    kind: str
    members: list[int] = field(default_factory=list)
    """Indices of the modules."""
    children: list[Node] = field(default_factory=list)


def merged_tree(modules: Sequence[Module]) -> list[Node]:
    """The models as trees in which equal blocks (numbered siblings of one class, with modules inside) are one node."""
    has_children = {module.parent for module in modules}
    roots: list[Node] = []
    place: list[Node] = []
    merged: dict[tuple[int, str, str], Node] = {}
    for index, module in enumerate(modules):
        if module.parent < 0:
            node = Node(module.name, module.kind)
            roots.append(node)
        else:
            parent = place[module.parent]
            local = module.name[len(modules[module.parent].name) + 1 :]
            is_block = local.isdigit() and index in has_children
            key = (id(parent), "*" if is_block else local, module.kind)
            if key not in merged:
                merged[key] = Node(local, module.kind)
                parent.children.append(merged[key])
            node = merged[key]
            if node.name != local:
                node.name = "*"
        node.members.append(index)
        place.append(node)
    return [_qualified(root, "") for root in roots]


def _qualified(node: Node, prefix: str) -> Node:
    node.name = prefix + node.name
    for child in node.children:
        _qualified(child, f"{node.name}.")
    return node


def starred_names(modules: Sequence[Module]) -> list[str]:
    """What each module is called if the numbers of equal blocks are replaced by ``*``: ``"GPT.blocks.*.up"``."""
    names = [module.name for module in modules]
    pending = merged_tree(modules)
    while pending:
        node = pending.pop()
        for index in node.members:
            names[index] = node.name
        pending += node.children
    return names
