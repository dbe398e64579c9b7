"""torch's private functions for nested containers, which no public module has. Knows nothing of what is inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .names import look_up

if TYPE_CHECKING:
    from torch.utils._pytree import keystr as keystr
    from torch.utils._pytree import tree_flatten as tree_flatten
    from torch.utils._pytree import tree_flatten_with_path as tree_flatten_with_path
    from torch.utils._pytree import tree_leaves as tree_leaves
    from torch.utils._pytree import tree_map as tree_map
    from torch.utils._pytree import tree_unflatten as tree_unflatten
else:
    _NEEDS = ("programs", "closed forms")
    keystr = look_up("torch.utils._pytree.keystr", *_NEEDS)
    tree_flatten = look_up("torch.utils._pytree.tree_flatten", *_NEEDS)
    tree_flatten_with_path = look_up("torch.utils._pytree.tree_flatten_with_path", *_NEEDS)
    tree_leaves = look_up("torch.utils._pytree.tree_leaves", *_NEEDS)
    tree_map = look_up("torch.utils._pytree.tree_map", *_NEEDS)
    tree_unflatten = look_up("torch.utils._pytree.tree_unflatten", *_NEEDS)
