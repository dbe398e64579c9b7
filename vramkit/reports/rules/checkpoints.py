"""Activation checkpointing of repeated blocks. Knows no other advice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ...tape.events import Category, Ints, Phase
from ..scene import Scene, grouped
from ..tree import merged_tree, shown_name
from .advised import Advice


def _checkpoint(scene: Scene) -> Iterator[Advice]:
    """Activation checkpointing of repeated blocks. Assumes that a block keeps its output and computes the rest again,
    one block at a time, beside its temporaries. Wrong where a block's output is not what the next one takes. Where
    something is checkpointed already, only if several blocks are computed again at once.
    """
    tape = scene.result.tape
    if not scene.trains or scene.evaluates:
        return
    block_of, name_of = _repeated_blocks(scene)
    owner = np.append(block_of, -1)[tape.allocations["module"]]
    again = Phase.RECOMPUTE in scene.phases
    phase = Phase.RECOMPUTE if again else Phase.FORWARD
    inside = (scene.category == Category.ACTIVATION) & (owner >= 0) & (tape.allocations["phase"] == phase)
    inside &= ~scene.left_behind
    if len(scene.fates.forwards) and not again:
        inside &= (scene.fates.forwards["has_grad"] & ~scene.fates.is_idle)[scene.fates.maker]
    if again and len(np.unique(owner[inside & scene.moment.alive])) < 2:
        return
    weights = np.where(inside, scene.block, 0)
    rows = np.flatnonzero(inside)
    # What stays of each block in each step: one tensor of its output's size.
    key = owner[rows] * (int(tape.allocations["step"].max(initial=0)) + 1) + tape.allocations["step"][rows]
    for group in grouped(rows, key):
        elements = int(np.prod(tape.modules[int(owner[group[0]])].output_shape, dtype=np.int64))
        for size in (4 * elements, 2 * elements):
            outputs = group[tape.allocations["requested"][group] == size]
            if len(outputs):
                weights[outputs[-1]] = 0
                break
    less = scene.less(weights) - _of_the_running(scene, block_of, owner, weights)
    names = sorted({name_of[block] for block in np.unique(owner[rows]).tolist()})
    blocks = [block for block, name in name_of.items() if name in names]  # not those of a copy, which keep nothing
    if names:
        label = shown_name(names[0] + ", ..." * (len(names) > 1))
        yield Advice(
            saves=scene.saved_over_time(less),
            text=f"checkpoint {'each of ' * again}the {len(blocks)} blocks {label} (torch.utils.checkpoint)"
            + ", not all of them as one: one checkpoint has all of its activations back at once" * again,
        )


def _of_the_running(scene: Scene, block_of: Ints, owner: Ints, weights: Ints) -> Ints:
    """Bytes that a checkpointed block holds all the same while it runs, or runs again for its backward."""
    tape = scene.result.tape
    events = tape.events
    running = np.append(block_of, -1)[events["module"]]
    running[~np.isin(events["phase"], (Phase.FORWARD, Phase.BACKWARD))] = -1
    # What has no module of its own in a backward (a sum of gradients) comes right after what has one.
    known = np.maximum.accumulate(
        np.where((running >= 0) | (events["phase"] != Phase.BACKWARD), np.arange(len(events)), 0)
    )
    running = running[known] if len(events) else running
    held = np.zeros(len(events) + 1, np.int64)
    inside = np.flatnonzero((owner >= 0) & (weights > 0))
    rows_of = {int(owner[rows[0]]): rows for rows in grouped(inside, owner[inside])}
    known = np.flatnonzero(running >= 0)
    for at in grouped(known, running[known]):
        rows = rows_of.get(int(running[at[0]]))
        if rows is None:
            continue
        born, died = tape.allocations["born"][rows], tape.allocations["died"][rows]
        for when, sign in ((born, 1), (np.where(died < 0, len(events), died), -1)):
            order = np.argsort(when)
            sums = np.concatenate([[0], np.cumsum(weights[rows][order])])
            held[at + 1] += sign * sums[np.searchsorted(when[order], at, side="right")]
    return held


def _repeated_blocks(scene: Scene) -> tuple[Ints, dict[int, str]]:
    """For each module the outermost repeated block that it is part of, -1 for none; and what each block is called.

    No block whose calls were not seen, inside of a module that was compiled as a whole: the compiler chooses what it
    computes again, and nobody knows how large the block's output is.
    """
    modules = scene.result.tape.modules
    is_seen = [module.calls > 0 for module in modules]
    for index in range(len(modules) - 1, -1, -1):
        if modules[index].parent >= 0:
            is_seen[modules[index].parent] |= is_seen[index]
    block_of = np.full(len(modules), -1, np.int64)
    name_of: dict[int, str] = {}
    pending = merged_tree(modules)
    while pending:
        node = pending.pop()
        if len(node.members) > 1 and node.children and any(is_seen[member] for member in node.members):
            block_of[node.members] = node.members
            name_of.update(dict.fromkeys(node.members, node.name))
        else:
            pending += node.children
    for index, module in enumerate(modules):  # parents come first
        if block_of[index] < 0 <= module.parent:
            block_of[index] = block_of[module.parent]
    return block_of, name_of


RULES: Sequence[Callable[[Scene], Iterator[Advice]]] = (_checkpoint,)
