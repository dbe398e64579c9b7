"""Trees of modules in which equal blocks are one node. Knows the modules of a tape, and nothing of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from string import digits

from ..errors import printable
from ..tape.events import Module

_CONTAINERS = {"ModuleDict", "ModuleList", "Sequential"}
_CUT = "..."


@dataclass
class Node:
    """Modules that are shown as one, and what is inside them."""

    name: str
    kind: str
    members: list[int] = field(default_factory=list)
    """Indices of the modules."""
    children: list[Node] = field(default_factory=list)


def merged_tree(modules: Sequence[Module]) -> list[Node]:
    """The models as trees in which equal blocks are one node.

    Those are siblings of one class with modules inside, called by a number; or by a name that ends in one
    (``encoder_layer_3``) if they hold modules of the same names and classes. Not the general containers: a ResNet's
    ``layer1`` and ``layer4`` are stages, and the blocks are inside them.
    """
    insides = _insides(modules)
    roots: list[Node] = []
    place: list[Node] = []
    merged: dict[tuple[int, str, str, int], Node] = {}
    for index, module in enumerate(modules):
        if module.parent < 0:
            node = Node(module.name, module.kind)
            roots.append(node)
        else:
            parent = place[module.parent]
            local = module.name[len(modules[module.parent].name) + 1 :]
            name, inside = local, 0
            stem = local.rstrip(digits) if insides[index] else local
            if stem != local and (not stem or module.kind not in _CONTAINERS):
                name, inside = f"{stem}*", insides[index] if stem else 0
            key = (id(parent), name, module.kind, inside)
            if key not in merged:
                merged[key] = Node(local, module.kind)
                parent.children.append(merged[key])
            node = merged[key]
            if node.name != local:
                node.name = name
        node.members.append(index)
        place.append(node)
    return [_qualified(root, "") for root in roots]


def _insides(modules: Sequence[Module]) -> list[int]:
    """For each module a number for the names and classes of all that is inside it; 0: nothing is."""
    children: list[list[int]] = [[] for _ in modules]
    for index, module in enumerate(modules):
        if module.parent >= 0:
            children[module.parent].append(index)
    numbers: dict[tuple[tuple[str, str, int], ...], int] = {(): 0}
    insides = [0] * len(modules)
    for index in range(len(modules) - 1, -1, -1):  # parents come first
        skip = len(modules[index].name) + 1
        key = tuple((modules[i].name[skip:], modules[i].kind, insides[i]) for i in children[index])
        insides[index] = numbers.setdefault(key, len(numbers))
    return insides


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


def shown_name(name: str, width: int = 0) -> str:
    """A module's or a tensor's name as a report shows it: without what ``torch.compile`` wraps models in.

    Args:
        name: qualified.
        width: characters that there are; of a longer name the middle is left out: the model stays, and as much of the
            end as has room, which tells most. 0: enough.
    """
    name = printable(name).replace("._orig_mod", "")
    if not 0 < width < len(name):
        return name
    model = name.find(".", name.rfind(" of ") + 1)
    head = min(model if model >= 0 else width, max(width * 2 // 3 - len(_CUT), 0))
    tail = name[len(name) - max(0, width - len(_CUT) - head) :]
    _, dot, whole = tail.partition(".")  # rather a part less than half of one
    return f"{name[:head]}{_CUT}{whole if dot and len(whole) * 2 > len(tail) else tail}"
