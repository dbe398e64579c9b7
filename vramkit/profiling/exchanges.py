"""What ranks exchange: buffers of collectives, parameters that are gathered for a while, and their gradients.

Knows where the virtual GPU and FSDP tell of it; what holds parameters, ``tracked_tensors`` knows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch

from ..tape.events import Category
from ..torch_internals.sharding import Sharding
from ..virtual_gpu import current
from .marks import Marks

_BUFFERS = ["buffer of a collective"] * 2


class Exchanges:
    """Looks at what ranks exchange.

    Args:
        marks: gets what each look sees.
        locate: where a tensor's memory lies.
        names: those of all parameters, by their ids.
    """

    def __init__(
        self, marks: Marks, locate: Callable[[torch.Tensor], int], names: Callable[[], dict[int, str]]
    ) -> None:
        self._marks = marks
        self._locate = locate
        self._names = names
        self._known: dict[tuple[Category, tuple[int, ...]], list[str]] = {}
        self._sharding: Sharding | None = None

    def install(self, stack: ExitStack) -> None:
        """Look from now on.

        Args:
            stack: ends it.
        """
        self._sharding = Sharding(stack, self._saw_gathered, self._saw_reduced)
        self._sharding.look()
        gpu = current()
        if gpu is not None:
            stack.callback(gpu.tell_exchanges, None)
            gpu.tell_exchanges(self._saw_buffers)

    def model_met(self) -> None:
        """A model was met: what shards it has been imported by now."""
        if self._sharding is not None:
            self._sharding.look()

    def _saw_buffers(self, read: int, written: int) -> None:
        if self._marks.is_open:
            self._marks.scan(self._marks.lines.current(), Category.COMMUNICATION, [read, written], _BUFFERS)

    def _saw_gathered(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self._saw(Category.GATHERED, pairs, "gathered")

    def _saw_reduced(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self._saw(Category.GRADIENT, pairs, "whole")

    def _saw(self, category: Category, pairs: list[tuple[torch.Tensor, torch.Tensor]], word: str) -> None:
        if not self._marks.is_open:
            return
        key = category, tuple(id(shard) for shard, _ in pairs)
        if key not in self._known:  # the same list again where it says the same: a scan is kept once
            names = self._names()
            self._known[key] = [f"{word} of {names[each]}" if each in names else "" for each in key[1]]
        addresses = [self._locate(tensor) for _, tensor in pairs]
        self._marks.scan(self._marks.lines.current(), category, addresses, self._known[key])
