"""The stacks and operators in torch's snapshots: of entries and of blocks, as torch 2.0 to 2.14 write them. No torch.

Knows where they are, and that much of them is the same object. Whose a frame is, ``vramkit.tape.stacks`` decides; which
operator made something, ``vramkit.tape.native_frames``.
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
from ..tape.native_frames import Part, operator_of, part_of
from ..tape.stacks import StackTree
from .checks import ImpossibleError

_MAX_PATH = 4096
_MAX_NAME = 200
_MAX_LINE = (1 << 31) - 1

_Found = tuple[int, str]
_NONE: _Found = (-1, "")


def with_stacks(
    recording: Recording, entries: Sequence[Mapping[str, Any]], segments: Sequence[Mapping[str, Any]], device: int
) -> Recording:
    """A recording with the stacks that its snapshot has, and with the operators that they name, if it has any.

    Args:
        recording: without them.
        entries: of which it is.
        segments: after the last entry, of all devices, as torch wrote them.
        device: of which it is.
    """
    reader = _Reader()
    is_alloc = (recording.action == Action.ALLOC).tolist()
    of_entries = [reader.read(entry) if is_one else _NONE for entry, is_one in zip(entries, is_alloc, strict=True)]
    of_blocks = {address: reader.read(block) for address, block in allocated_blocks(segments, device=device)}
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
        if of_entries[event] == _NONE:  # with context="state" torch keeps stacks of what is alive, and none of entries
            of_entries[event] = of_blocks.get(address, _NONE)
    of_before = [_NONE if each.address in freed else of_blocks.get(each.address, _NONE) for each in recording.before]
    return replace(
        recording,
        stacks=reader.tree,
        stack=np.array([row for row, _ in of_entries], np.int64),
        operator=[operator for _, operator in of_entries],
        before=[
            replace(each, stack=row, operator=operator)
            for each, (row, operator) in zip(recording.before, of_before, strict=True)
        ],
    )


def line_of(entry: Mapping[str, Any]) -> str:
    """The line of the program that made an entry, ``"train.py:42 in forward"``; empty: it is not known."""
    reader = _Reader()
    stacks = reader.tree.stacks(np.array([reader.read(entry)[0]]))
    line = int(stacks.lines[0])
    return stacks.texts[line] if line >= 0 else ""


class _Reader:
    """Reads stacks. Many entries can have one stack, and many stacks one frame: each is read once.

    The snapshot has to stay meanwhile: what was read is known by its identity.
    """

    def __init__(self) -> None:
        self.tree = StackTree()
        self._of_lists: dict[tuple[int, int], _Found] = {}
        self._of_frames: dict[tuple[tuple[int, ...], tuple[str, ...]], _Found] = {}
        self._known: dict[int, tuple[int, tuple[Part, str] | None]] = {}

    def read(self, entry: Mapping[str, Any]) -> _Found:
        """The stack of an entry or a block, as a row of the tree, and the operator; -1 and empty: it has none.

        Autograd's threads run no Python. Beside what a backward makes there is the stack of the forward, where torch
        knows it: from 2.11 on, of nodes that were made while anomaly detection was on.
        """
        frames, forward = entry.get("frames") or [], entry.get("forward_frames") or []
        if not frames and type(history := entry.get("history")) is list:  # of a block, in torch 2.0
            frames = (history and type(history[0]) is dict and history[0].get("frames")) or []
        if not frames and not forward:
            return _NONE
        key = id(frames) if frames else 0, id(forward) if forward else 0
        found = self._of_lists.get(key)
        if found is None:
            found = self._of_lists[key] = self._read(frames, forward)
        return found

    def _read(self, frames: object, forward: object) -> _Found:
        if type(frames) is not list or type(forward) is not list or not all(type(each) is str for each in forward):
            raise ImpossibleError(f"the frames can't be {shown(forward or frames)}")
        key = tuple(map(id, frames)), tuple(forward)
        found = self._of_frames.get(key)
        if found is None:
            known = [*map(self._frame, frames)]
            row = self.tree.add([number for number, _ in known], forward)
            found = self._of_frames[key] = row, operator_of(part for _, part in known)
        return found

    def _frame(self, frame: object) -> tuple[int, tuple[Part, str] | None]:
        """The number of a frame in the tree, and what it says of the operator."""
        found = self._known.get(id(frame))
        if found is None:
            if not isinstance(frame, dict):
                raise ImpossibleError(f"a frame can't be {shown(frame)}")
            found = self._known[id(frame)] = self._add(frame.get("filename"), frame.get("line"), frame.get("name"))
        return found

    def _add(self, file: object, line: object, function: object) -> tuple[int, tuple[Part, str] | None]:
        if type(file) is not str or len(file) > _MAX_PATH:
            return -1, None
        number = line if type(line) is int and 0 < line <= _MAX_LINE else 0
        name = function[:_MAX_NAME] if type(function) is str else "?"
        return self.tree.number(file, number, name), part_of(file, name)
