"""Which kernels cuDNN chooses for a convolution: tables by the card's generation and the precision.

Knows where the planner goes from one kind of kernel to another; what each kind wants, ``cudnn_workspaces.py`` says.

The tables were fitted to what the planner of cuDNN 9.24 answers for 1,100 layers of published networks and 500 random
ones, in batches of 1 to 256, for a T4, A100, A10G, L4, H100, B200 and RTX 5090. For layers left out of the fit they
rightly tell whether there are copies in three of four to all cases, by generation, precision and window. Its choices
jump with batch and size, so that a single layer may be wrong by all of its copies. Which convolutions are products by
cuBLASLt, which keep transformed tiles, and how a Hopper's blocks share a weight was seen of less: 25 layers, in batches
of 2, 16 and 64. Assumes `torch.backends.cudnn.benchmark` off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from ....gpus import GPU

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
    def is_product(self) -> bool:
        """Whether it is a product of matrices, which cuBLASLt computes inside of cuDNN; small images are not."""
        is_large = math.prod(self.output.shape[2:]) >= PRODUCT_PIXELS
        return self.window == 1 and self.keeps_size and self.groups == 1 and is_large

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


class AtLeast(NamedTuple):
    """Kernels that read copies are chosen from so many channels of input and output on."""

    input: int
    output: int

    def chooses(self, problem: Problem) -> bool:
        """Whether a kernel is chosen that reads copies."""
        return problem.channels[0] >= self.input and problem.channels[1] >= self.output


class Intense(NamedTuple):
    """For windows of one pixel: they are chosen for so much arithmetic for each byte, or for so few pixels."""

    channels: int
    """The harmonic mean of input's and output's, halved."""
    pixels: int

    def chooses(self, problem: Problem) -> bool:
        """Whether a kernel is chosen that reads copies."""
        one, other = problem.channels
        is_apt = problem.keeps_size or one >= STRIDED
        return is_apt and (one * other >= self.channels * (one + other) or problem.pixels <= self.pixels)


Choice = AtLeast | Intense
ALWAYS = AtLeast(1, 1)
NEVER = AtLeast(1 << 30, 1 << 30)
STRIDED = 256
"""Input channels from which on windows of one pixel that skip others get copies."""
PRODUCT_PIXELS = 100
"""Of an image, from which on it is a product of matrices."""
TILE = 128
"""Rows and columns of the weight that a block of threads computes."""
_TILE_BYTES = TILE * TILE * 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """Which kernels a generation gets: for each result a choice for windows of one pixel, and one for larger ones."""

    output: tuple[Choice, Choice]
    input: tuple[Choice, Choice] = (ALWAYS, ALWAYS)
    weight: tuple[Choice, Choice] = (ALWAYS, ALWAYS)
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
    has_clusters: bool = False
    """Kernels that share work among clusters of blocks, in waves that fill the card."""
    min_sums: int = 0
    """Bytes of partial sums that small weights have in any case."""

    def reads_copies(self, wanted: Wanted, problem: Problem) -> bool:
        """Whether a kernel is chosen that reads copies with the channels last, of tensors that lie otherwise."""
        choices = {"output": self.output, "input": self.input, "weight": self.weight}[wanted]
        return choices[problem.window > 1].chooses(problem)


_AMPERE: dict[str, Any] = {"written": 1 << 30, "copies_operands": True, "has_winograd": True}

# compute capability -> for single precision, computed with TF32
_TENSOR_FLOAT = {
    (8, 0): Habits(
        output=(AtLeast(17, 9), AtLeast(9, 9)), input=(AtLeast(9, 1), AtLeast(9, 9)),
        weight=(AtLeast(9, 5), AtLeast(9, 1)), sums=4, **_AMPERE,
    ),
    (8, 6): Habits(
        output=(Intense(112, 1024), AtLeast(33, 49)), input=(Intense(96, 8192), AtLeast(9, 9)),
        weight=(Intense(112, 4096), AtLeast(9, 9)), sums=0.5, first=64, first_weight=(300_000, 1 << 60),
        **_AMPERE,
    ),
    (8, 9): Habits(
        output=(Intense(256, 16384), AtLeast(9, 49)), input=(Intense(256, 16384), AtLeast(33, 33)),
        weight=(Intense(192, 4096), AtLeast(33, 33)), sums=2, first=64, first_weight=(0, 300_000),
        first_small=300_000, **_AMPERE,
    ),
    (9, 0): Habits(
        output=(AtLeast(17, 33), AtLeast(5, 1)), input=(AtLeast(49, 5), AtLeast(5, 1)),
        weight=(AtLeast(9, 1), AtLeast(9, 1)), written=64, first_small=1_000_000, has_clusters=True,
    ),
    (10, 0): Habits(
        output=(AtLeast(5, 49), AtLeast(9, 1)), input=(ALWAYS, AtLeast(5, 1)), weight=(ALWAYS, AtLeast(5, 1)), sums=0.5,
        min_sums=18 * _TILE_BYTES,
    ),
    (12, 0): Habits(
        output=(AtLeast(33, 9), AtLeast(9, 1)), input=(AtLeast(9, 17), AtLeast(9, 1)),
        weight=(AtLeast(9, 1), AtLeast(5, 1)), sums=1, first=64, **_AMPERE,
    ),
}  # fmt: skip

# the same for half precision, of both kinds
_HALF = {
    (7, 5): Habits(
        output=(AtLeast(1, 257), AtLeast(9, 1)), input=(AtLeast(17, 1), AtLeast(5, 5)),
        weight=(AtLeast(9, 1), AtLeast(5, 5)),
    ),
    (8, 0): Habits(output=(AtLeast(49, 1), AtLeast(9, 1)), sums=1),
    (8, 6): Habits(output=(AtLeast(17, 97), AtLeast(9, 5)), sums=0.25, first=64),
    (8, 9): Habits(output=(AtLeast(1, 33), AtLeast(9, 1)), input=(AtLeast(33, 1), AtLeast(1, 5)), sums=1, first=64),
    (9, 0): Habits(output=(AtLeast(1, 5), AtLeast(5, 5)), has_clusters=True),
    (10, 0): Habits(
        output=(AtLeast(17, 5), AtLeast(17, 1)), weight=(AtLeast(9, 1), ALWAYS), sums=0.5, min_sums=18 * _TILE_BYTES,
    ),
    (12, 0): Habits(output=(AtLeast(1, 33), ALWAYS), sums=1),
}  # fmt: skip

_TURING, _HOPPER = (7, 5), (9, 0)
_WIDE = 256
_FEW_PIXELS, _SOME_PIXELS = 13_000, 60_000

PLAIN = Habits(output=(NEVER, NEVER), input=(NEVER, NEVER), weight=(NEVER, NEVER))
"""Without tensor cores."""


def habits_of(problem: Problem, gpu: GPU) -> Habits:
    """Which kernels a card gets for the precision of a convolution."""
    dtype = problem.input.dtype
    if dtype in (torch.float16, torch.bfloat16):
        return _HALF.get(gpu.capability, PLAIN)
    if dtype is torch.float32 and _allows_tensor_float():
        return _TENSOR_FLOAT.get(gpu.capability, PLAIN)
    return PLAIN


def transforms_tiles(problem: Problem, wanted: Wanted, gpu: GPU) -> bool:
    """Whether a kernel is chosen that keeps all tiles of 4 x 4 pixels, and all filters for them, transformed."""
    if not problem.is_small:
        return False
    channels, images, dtype = min(problem.channels), problem.output.shape[0], problem.input.dtype
    if dtype is torch.float32 and habits_of(problem, gpu) is PLAIN:
        if wanted == "weight":
            return channels >= (32 if gpu.capability in (_TURING, _HOPPER) else _WIDE)
        return gpu.capability == _TURING and not problem.is_channels_last and images >= 8 and channels >= 32
    if problem.is_channels_last or images < 8:
        return False
    if dtype is torch.float32:
        return gpu.capability == (12, 0) and wanted == "input" and channels >= 64 and problem.pixels <= _SOME_PIXELS
    is_half = dtype is torch.float16 and gpu.capability == _TURING
    return is_half and wanted != "weight" and channels >= _WIDE and problem.pixels <= _FEW_PIXELS


def _allows_tensor_float() -> bool:
    convolutions = getattr(torch.backends.cudnn, "conv", None)
    if convolutions is None:  # torch 2.8
        return torch.backends.cudnn.allow_tf32
    precision: str = convolutions.fp32_precision
    return precision == "tf32"
