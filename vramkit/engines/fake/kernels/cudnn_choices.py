"""Which of cuDNN's convolution kernels a card is given: tables by generation and precision, fitted to its planner."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

Wanted = Literal["output", "input", "weight"]
"""What is computed: the result, or a gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A convolution as cuDNN knows it; a transposed one is the gradient of an input."""

    input: torch.Tensor
    weight: torch.Tensor
    output: torch.Tensor
    groups: int
    is_channels_last: bool

    @property
    def window(self) -> int:
        """Pixels under the filter."""
        return math.prod(self.weight.shape[2:])

    @property
    def pixels(self) -> int:
        """Of the output, of all images."""
        return self.output.numel() // max(self.output.shape[1], 1)

    @property
    def channels(self) -> tuple[int, int]:
        """Of input and output, in a group."""
        return self.input.shape[1] // self.groups, self.output.shape[1] // self.groups

    @property
    def is_depthwise(self) -> bool:
        """Whether every channel has filters of its own."""
        return self.groups > 1 and self.channels[0] == 1

    @property
    def is_small(self) -> bool:
        """Whether it is 3 x 3, and keeps the size."""
        return self.keeps_size and tuple(self.weight.shape[2:]) == (3, 3)

    @property
    def skips(self) -> bool:
        """Whether windows of up to four pixels skip input pixels or do not overlap."""
        return self.window <= 4 and not self.keeps_size

    @property
    def keeps_size(self) -> bool:
        """Whether the output is as large as the input."""
        return self.input.shape[2:] == self.output.shape[2:]


class Least(NamedTuple):
    """Channels of input and output from which on kernels are chosen that read copies."""

    input: int
    output: int

    def chooses(self, problem: Problem) -> bool:
        return problem.channels[0] >= self.input and problem.channels[1] >= self.output


class Intense(NamedTuple):
    """For windows of one pixel: products of so much arithmetic for each byte, or of so few pixels."""

    channels: int
    """The harmonic mean of input's and output's, halved."""
    pixels: int

    def chooses(self, problem: Problem) -> bool:
        one, other = problem.channels
        is_apt = problem.keeps_size or one >= STRIDED
        return is_apt and (one * other >= self.channels * (one + other) or problem.pixels <= self.pixels)


Rule = Least | Intense


TILE = 128  # rows and columns of the weight that a block computes


TILE_BYTES = TILE * TILE * 4


ALL = Least(1, 1)


NONE = Least(1 << 30, 1 << 30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """Which kernels a generation gets: for each result a rule for windows of one pixel, and one for larger ones."""

    output: tuple[Rule, Rule]
    input: tuple[Rule, Rule] = (ALL, ALL)
    weight: tuple[Rule, Rule] = (ALL, ALL)
    first: int = 16
    """Pixels of a window above which the first layer, of up to four input channels, is given copies."""
    first_weight: tuple[int, int] = (0, 1 << 60)
    """Between how many pixels of the output its weight's gradient is, in windows of more than 3 x 3."""
    first_small: int = 0
    """Up to how many pixels it is in windows of 3 x 3 that keep the size."""
    written: int = 0
    """Up to how many input channels a kernel writes its result where it belongs, so that it has no copy."""
    has_winograd: bool = False
    """Few channels in windows of 3 x 3 get a kernel that transforms tiles, and wants little."""
    copies_operands: bool = False
    """Kernels read copies also of tensors that have their channels last."""
    sums: float = 0
    """Blocks with partial sums of a weight's gradient, for each multiprocessor."""
    extra: int = 0
    """Bytes beside copies, on top of `_EXTRA`, for a result and for an input's gradient."""
    least_sums: int = 0
    """Bytes of partial sums that small weights have in any case."""


AMPERE: dict[str, Any] = {"written": 1 << 30, "copies_operands": True, "has_winograd": True}


TENSOR_FLOAT = {
    (8, 0): Habits(
        output=(Least(17, 9), Least(9, 9)), input=(Least(9, 1), Least(9, 9)),
        weight=(Least(9, 5), Least(9, 1)), sums=4, **AMPERE,
    ),
    (8, 6): Habits(
        output=(Intense(112, 1024), Least(33, 49)), input=(Intense(96, 8192), Least(9, 9)),
        weight=(Intense(112, 4096), Least(9, 9)), sums=0.5, first=64, first_weight=(300_000, 1 << 60),
        **AMPERE,
    ),
    (8, 9): Habits(
        output=(Intense(256, 16384), Least(9, 49)), input=(Intense(256, 16384), Least(33, 33)),
        weight=(Intense(192, 4096), Least(33, 33)), sums=2, first=64, first_weight=(0, 300_000),
        first_small=300_000, **AMPERE,
    ),
    (9, 0): Habits(
        output=(Least(17, 33), Least(5, 1)), input=(Least(49, 5), Least(5, 1)), weight=(Least(9, 1), Least(9, 1)),
        written=64, first_small=1_000_000, extra=131, least_sums=18 * TILE_BYTES,
    ),
    (10, 0): Habits(
        output=(Least(5, 49), Least(9, 1)), input=(ALL, Least(5, 1)), weight=(ALL, Least(5, 1)), sums=0.5,
        least_sums=18 * TILE_BYTES,
    ),
    (12, 0): Habits(
        output=(Least(33, 9), Least(9, 1)), input=(Least(9, 17), Least(9, 1)),
        weight=(Least(9, 1), Least(5, 1)), sums=1, first=64, **AMPERE,
    ),
}  # fmt: skip


HALF = {
    (7, 5): Habits(
        output=(Least(1, 257), Least(9, 1)), input=(Least(17, 1), Least(5, 5)), weight=(Least(9, 1), Least(5, 5)),
    ),
    (8, 0): Habits(output=(Least(49, 1), Least(9, 1)), sums=1),
    (8, 6): Habits(output=(Least(17, 97), Least(9, 5)), sums=0.25, first=64),
    (8, 9): Habits(output=(Least(1, 33), Least(9, 1)), input=(Least(33, 1), Least(1, 5)), sums=1, first=64),
    (9, 0): Habits(output=(Least(1, 5), Least(5, 5)), extra=131, least_sums=8 * TILE_BYTES),
    (10, 0): Habits(
        output=(Least(17, 5), Least(17, 1)), weight=(Least(9, 1), ALL), sums=0.5, least_sums=18 * TILE_BYTES,
    ),
    (12, 0): Habits(output=(Least(1, 33), ALL), sums=1),
}  # fmt: skip


PLAIN = Habits(output=(NONE, NONE), input=(NONE, NONE), weight=(NONE, NONE))


STRIDED = 256  # input channels from which on windows of one pixel that skip others get copies
