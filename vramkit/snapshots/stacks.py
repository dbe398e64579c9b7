"""The stacks in torch's snapshots: of entries and of blocks, as torch 2.0 to 2.14 write them. No torch.

Knows where they are, and that much of them is the same object. Whose a frame is, ``vramkit.tape.stacks`` decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..allocator import allocated_blocks
from ..attribution.recording import Recording
from ..errors import shown
from ..tape.events import Action
from ..tape.stacks import StackTree
from .checks import ImpossibleError

_MAX_PATH = 4096
_MAX_NAME = 200
_MAX_LINE = (1 << 31) - 1


def with_stacks(
    recording: Recording, entries: Sequence[Mapping[str, Any]], segments: Sequence[Mapping[str, Any]], device: int
) -> Recording:
    """A recording with the stacks that its snapshot has, if it has any.

    Args:
        recording: without them.
        entries: of which it is.
        segments: after the last entry, of all devices, as torch wrote them.
        device: of which it is.
    """
    reader = _Reader()
    is_alloc = (recording.action == Action.ALLOC).tolist()
    of_entries = [reader.stack(entry) if is_one else -1 for entry, is_one in zip(entries, is_alloc, strict=True)]
    of_blocks = {address: reader.stack(block) for address, block in allocated_blocks(segments, device=device)}
    if not len(reader.tree):
        return recording
    alive: dict[int, int] = {}
    freed = set()
    for event, (action, address) in enumerate(zip(recording.action.tolist(), recording.address.tolist(), strict=True)):
        if action == Action.ALLOC:
            alive[address] = event
        elif action == Action.FREE:
            alive.pop(address, None)
            freed.add(address)  # what lies there now is another allocation
    for address, event in alive.items():
        if of_entries[event] < 0:  # with context="state" torch keeps stacks of what is alive, and none of entries
            of_entries[event] = of_blocks.get(address, -1)
    before = [
        replace(each, stack=-1 if each.address in freed else of_blocks.get(each.address, -1))
        for each in recording.before
    ]
    return replace(recording, stacks=reader.tree, stack=np.array(of_entries, np.int64), before=before)


def line_of(entry: Mapping[str, Any]) -> str:
    """The line of the program that made an entry, ``"train.py:42 in forward"``; empty: it is not known."""
    reader = _Reader()
    stacks = reader.tree.stacks(np.array([reader.stack(entry)]))
    line = int(stacks.lines[0])
    return stacks.texts[line] if line >= 0 else ""


class _Reader:
    """Reads stacks. Many entries can have one stack, and many stacks one frame: each is read once.

    The snapshot has to stay meanwhile: what was read is known by its identity.
    """

    def __init__(self) -> None:
        self.tree = StackTree()
        self._of_lists: dict[tuple[int, int], int] = {}
        self._of_frames: dict[tuple[tuple[int, ...], tuple[str, ...]], int] = {}
        self._numbers: dict[int, int] = {}

    def stack(self, entry: Mapping[str, Any]) -> int:
        """The stack of an entry or a block, as a row of the tree; -1: it has none.

        Autograd's threads run no Python. Beside what a backward makes there is the stack of the forward, where torch
        knows it: from 2.11 on, of nodes that were made while anomaly detection was on.
        """
        frames, forward = entry.get("frames") or [], entry.get("forward_frames") or []
        if not frames and type(history := entry.get("history")) is list:  # of a block, in torch 2.0
            frames = (history and type(history[0]) is dict and history[0].get("frames")) or []
        if not frames and not forward:
            return -1
        key = id(frames) if frames else 0, id(forward) if forward else 0
        found = self._of_lists.get(key)
        if found is None:
            found = self._of_lists[key] = self._read(frames, forward)
        return found

    def _read(self, frames: object, forward: object) -> int:
        if type(frames) is not list or type(forward) is not list or not all(type(each) is str for each in forward):
            raise ImpossibleError(f"the frames can't be {shown(forward or frames)}")
        key = tuple(map(id, frames)), tuple(forward)
        found = self._of_frames.get(key)
        if found is None:
            found = self._of_frames[key] = self.tree.add([*map(self._number, frames)], forward)
        return found

    def _number(self, frame: object) -> int:
        found = self._numbers.get(id(frame))
        if found is None:
            if not isinstance(frame, dict):
                raise ImpossibleError(f"a frame can't be {shown(frame)}")
            found = self._numbers[id(frame)] = self._add(frame.get("filename"), frame.get("line"), frame.get("name"))
        return found

    def _add(self, file: object, line: object, function: object) -> int:
        if type(file) is not str or len(file) > _MAX_PATH:
            return -1
        number = line if type(line) is int and 0 < line <= _MAX_LINE else 0
        return self.tree.number(file, number, function[:_MAX_NAME] if type(function) is str else "?")
