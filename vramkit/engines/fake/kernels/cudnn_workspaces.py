"""cuDNN's workspaces of convolutions, estimated: how many bytes its kernels want beside their results.

Knows the kinds of kernels and what each wants; from where on a card is given which kind is in the tables of
``cudnn_choices.py``. Most kernels on tensor cores read channels last. Where tensors lie otherwise, the workspace holds
copies of them in that order, channels filled up to 16 bytes; for a weight's gradient also the partial sums of blocks
that share it. Other kernels read tensors as they are and want next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ....gpus import GPU
from .arithmetic import ceil_div, round_up
from .cudnn_choices import PLAIN, STRIDED, TILE, Habits, Problem, Wanted, habits_of, transforms_tiles

_FLAGS = 131  # of four bytes, and what moves it to a multiple of 128
_EXTRA = 16  # bytes beside copies; with them a workspace no longer fits where such a tensor was
_MIN_DEPTHWISE = 150_000  # elements of the result from which on a weight's gradient is shared
_COPIES_DEPTHWISE = ((8, 0), (9, 0))
_PIXELS_OF_A_BLOCK = 680  # that it adds up at least
_MIN_SHARED_PIXELS = 1300  # from which on an A100's blocks share them
_FEW_TILES, _SOME_PIXELS, _MANY_PIXELS = 16, 4000, 16_000  # where a large weight's gradient is shared


def workspace(problem: Problem, wanted: Wanted, gpu: GPU) -> int:
    """Bytes that cuDNN's kernel takes beside its result."""
    habits = habits_of(problem, gpu)
    if problem.is_depthwise:
        return _depthwise_weight(problem, gpu) if wanted == "weight" and habits is not PLAIN else 0
    if problem.pixels == problem.output.shape[0] and problem.window == 1:
        return 0
    if problem.is_product:
        return _product(problem, wanted, habits, gpu)
    if transforms_tiles(problem, wanted, gpu):
        return _tiles(problem, wanted)
    of: Callable[[Problem, Habits, GPU], int] = {"output": _output, "input": _input, "weight": _weight}[wanted]
    return of(problem, habits, gpu)


def _product(problem: Problem, wanted: Wanted, habits: Habits, gpu: GPU) -> int:
    """A gradient of the weight for each image, in single precision, where the channels come first."""
    is_shared = wanted == "weight" and (habits is not PLAIN or gpu.capability < (8, 0))
    return 4 * problem.output.shape[0] * problem.weight.numel() * (is_shared and not problem.is_channels_last)


def _tiles(problem: Problem, wanted: Wanted) -> int:
    """Tiles of 4 x 4 pixels become 6 x 6, of the input, the output and the weight; in single precision."""
    inside, outside = problem.channels
    tiles = problem.output.shape[0] * math.prod(ceil_div(side, 4) for side in problem.output.shape[2:])
    own = [problem.input, problem.output, *[problem.weight] * (wanted == "output")]
    copied = _copies(*own) if problem.is_channels_last else 0
    return 4 * 36 * (tiles * (inside + outside) + inside * outside) * problem.groups + copied


def _output(problem: Problem, habits: Habits, gpu: GPU) -> int:
    from_image = problem.input.shape[1] <= 4 and habits is not PLAIN
    if problem.is_channels_last:
        if from_image:
            return _copies(problem.input, problem.weight) if problem.window > 9 else 0
        if _transforms_filters(problem, habits, gpu):
            copied = _copies(problem.input, problem.weight, problem.output)
            return copied + _filters(problem, problem.output.shape[1])
        if habits.has_clusters:
            return _flags(problem.output, habits, gpu)
        return _copies(problem.input, problem.weight) if habits.copies_operands else 0
    if from_image and problem.window > habits.first:
        # In single precision there is a kernel for such a first layer, which doesn't fill the channels up.
        read = [problem.input, problem.weight]
        is_filled = problem.input.element_size() != 4 or problem.window >= 64
        return sum(_copy(each) if is_filled else each.nbytes for each in read) + problem.output.nbytes + _EXTRA
    if not habits.reads_copies("output", problem):
        return _direct(problem, habits, gpu)
    if habits.written and problem.skips and problem.channels[0] < (STRIDED if problem.window == 1 else 64):
        return _offsets(problem.output)
    if habits.has_winograd and problem.is_small and max(problem.channels) <= 32:
        return _filters(problem, problem.output.shape[1])
    is_wide = problem.window == 1 or max(problem.channels) > 32
    writes = problem.input.shape[1] <= habits.written and is_wide
    copied = _copies(problem.input, *_reordered(problem, habits), *[problem.output] * (not writes))
    return copied + _flags(problem.output, habits, gpu)


def _input(problem: Problem, habits: Habits, gpu: GPU) -> int:
    if problem.is_channels_last:
        if habits is PLAIN:
            result = [problem.input] if problem.window > 1 else []
            more = _filters(problem, problem.input.shape[1]) if _transforms_filters(problem, habits, gpu) else 0
            return _copies(problem.output, problem.weight, *result) + more
        if problem.input.shape[1] <= 4:
            return _copies(problem.input, problem.weight)
        if habits.has_clusters:
            return _flags(problem.input, habits, gpu)
        return _copies(problem.output, problem.weight) if habits.copies_operands else 0
    is_image = problem.window > 9 and problem.input.shape[1] <= 8
    if not (habits.has_clusters if is_image else habits.reads_copies("input", problem)):
        return _direct(problem, habits, gpu, backward=True)
    if habits.has_winograd and problem.is_small and problem.channels[0] <= 32:
        return _filters(problem, problem.input.shape[1])
    return _copies(problem.input, *_reordered(problem, habits), problem.output) + _flags(problem.input, habits, gpu)


def _weight(problem: Problem, habits: Habits, gpu: GPU) -> int:
    if habits is PLAIN:
        return 0
    copied = [problem.input, problem.output, *_reordered(problem)]
    if problem.is_channels_last and not habits.copies_operands:
        copied = [problem.input, problem.weight] if problem.input.shape[1] <= 4 else []
    elif not problem.is_channels_last and not _chooses_copies(problem, habits):
        return 0
    return _copies(*copied) + _sums(problem, habits, gpu)


def _depthwise_weight(problem: Problem, gpu: GPU) -> int:
    """Where channels lie last: sums of each image in half precision, copies for large windows in single precision."""
    images, elements = problem.output.shape[0], problem.output.numel()
    if problem.weight.element_size() == 2:
        shared_from = _MIN_DEPTHWISE if gpu.capability < (9, 0) else 3 * _MIN_DEPTHWISE
        return 16 * images * problem.weight.nbytes if elements >= shared_from else 0
    if problem.window <= 25 or gpu.capability not in _COPIES_DEPTHWISE or elements < 4 * _MIN_DEPTHWISE:
        return 0
    # Each channel is a group of its own and is filled up to four, in the weight on both sides.
    return 4 * (problem.input.nbytes + problem.output.nbytes) + 16 * problem.weight.nbytes + _EXTRA


def _chooses_copies(problem: Problem, habits: Habits) -> bool:
    """Whether the kernel of a weight's gradient reads copies."""
    if problem.input.shape[1] > 4 or problem.window == 1:
        return habits.reads_copies("weight", problem)
    if problem.window > 9:
        smallest, largest = habits.first_weight
        return smallest <= problem.pixels <= largest
    return habits.reads_copies("weight", problem) or (problem.is_small and problem.pixels <= habits.first_small)


def _sums(problem: Problem, habits: Habits, gpu: GPU) -> int:
    """Bytes of the partial sums: blocks share the pixels where the weight alone has too few tiles for the card."""
    weight = problem.weight
    rows, columns = weight.shape[0], weight.numel() // max(weight.shape[0], 1)
    tiles = max(ceil_div(rows, TILE) * ceil_div(columns, TILE), 1)  # a weight may be empty
    if habits.sums > 2 and weight.dim() == 4:
        shares = _shares_of_images(problem, tiles, gpu)
    elif habits.has_clusters:
        return _sums_of_clusters(problem, gpu)
    else:
        waves = habits.sums
        if tiles < _FEW_TILES:
            waves = min(waves, 1)
        elif waves > 2 and problem.pixels < _MANY_PIXELS:
            waves = 2 if problem.pixels >= _SOME_PIXELS else 0
        shares = min(problem.pixels // _PIXELS_OF_A_BLOCK, int(gpu.multiprocessors * waves / tiles))
    sums = _copy(weight) // weight.element_size() * 4 * shares + (habits.min_sums if tiles <= 3 else 0)
    return sums + 128 if sums else 0


def _shares_of_images(problem: Problem, tiles: int, gpu: GPU) -> int:
    """How many blocks of an A100 share the pixels of a tile, in 2-D: they fill the card in full waves, or nearly one.

    After what the planner answers for 284 layers of fourteen networks, in batches of 8 to 128.
    """
    if problem.pixels < _MIN_SHARED_PIXELS:
        return 0
    if problem.window == 1:
        return int(0.6 * gpu.multiprocessors) // tiles
    if tiles < 30:
        return min(max(gpu.multiprocessors // tiles, 8), 17)
    if problem.pixels >= (10_000 if tiles < 60 else 6_000):
        waves = 4
    else:
        waves = 0 if tiles >= 60 else 2 if problem.pixels >= 2_500 else 1
    return waves * gpu.multiprocessors // tiles


def _sums_of_clusters(problem: Problem, gpu: GPU) -> int:
    """Bytes of the partial sums on a Hopper: a tile is as high as there are results, and 64 columns wide."""
    weight = problem.weight
    is_half = weight.element_size() == 2
    if is_half and problem.pixels < _MANY_PIXELS:
        return 0
    tiles = max(ceil_div(weight.numel(), 64 * min(max(weight.shape[0], 64), 512 if is_half else 256)), 1)
    shares = min(gpu.multiprocessors // tiles, problem.pixels // _PIXELS_OF_A_BLOCK)
    return 4 * shares * (weight.numel() + tiles) + _FLAGS + 28 if shares else 0


def _flags(result: torch.Tensor, habits: Habits, gpu: GPU) -> int:
    """A flag, for blocks that compute more than one tile each."""
    tiles = ceil_div(result.numel() // max(result.shape[1], 1), TILE) * ceil_div(result.shape[1], TILE)
    return _FLAGS if habits.has_clusters and tiles > gpu.multiprocessors else 0


def _direct(problem: Problem, habits: Habits, gpu: GPU, *, backward: bool = False) -> int:
    """What kernels want that read tensors as they are: filters for tiles, or where the pixels of a window lie."""
    if _transforms_filters(problem, habits, gpu):
        return _filters(problem, (problem.input if backward else problem.output).shape[1])
    if not backward:
        return _offsets(problem.output)
    is_apt = problem.keeps_size and problem.groups == 1 and problem.input.shape[1] > 4
    return _offsets(problem.input) + 17 * 128 if is_apt else 0


def _transforms_filters(problem: Problem, habits: Habits, gpu: GPU) -> bool:
    """Whether a kernel is chosen that transforms the filters in memory, and tiles on the way."""
    is_wide = min(problem.channels) >= 64
    return habits is PLAIN and gpu.capability < (9, 0) and problem.is_small and is_wide


def _offsets(tensor: torch.Tensor) -> int:
    """Six bytes for each pixel of an image, in whole parts of 128 bytes with some room."""
    return 128 * (6 * math.prod(tensor.shape[2:]) // 128 + 1)


def _filters(problem: Problem, channels: int) -> int:
    """Transformed, 5 x 5 for each of 3 x 3, and four bytes for each channel of the result."""
    return problem.weight.numel() * 4 * 25 // 9 + 4 * channels if problem.input.element_size() == 4 else 0


def _reordered(problem: Problem, habits: Habits | None = None) -> list[torch.Tensor]:
    """The weight, where its copy differs from it: a window of one pixel has channels last in any order."""
    is_legacy = habits is not None and habits.has_winograd
    filled = any(channels % (16 // problem.input.element_size()) for channels in problem.channels)
    return [problem.weight] if problem.window > 1 or filled or is_legacy else []


def _copies(*tensors: torch.Tensor) -> int:
    return sum(map(_copy, tensors)) + _EXTRA if tensors else 0


def _copy(tensor: torch.Tensor) -> int:
    """Bytes of a copy with the channels filled up to 16 bytes, those of half-precision images to four."""
    channels, each = max(tensor.shape[1], 1), 16 // tensor.element_size()
    if tensor.dtype is torch.float16 and channels <= 4:
        each = 4
    return tensor.nbytes // channels * round_up(channels, each)
