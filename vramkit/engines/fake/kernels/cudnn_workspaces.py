"""cuDNN's workspaces of convolutions, estimated: which of its kernels a card is given, and what those want.

Most kernels on tensor cores read channels last. Where tensors lie otherwise, the workspace holds copies of them in that
order, channels filled up to 16 bytes; for a weight's gradient also the partial sums of blocks that share it. Other
kernels read tensors as they are and want next to nothing. So what matters is who is chosen, and that depends on the
card's generation, the precision, and mostly on how many channels there are: `TENSOR_FLOAT` and `HALF`.

The tables were fitted to what the planner of cuDNN 9.24 answers for 1,100 layers of published networks and 500 random
ones, in batches of 1 to 256, for a T4, A100, A10G, L4, H100, B200 and RTX 5090. For layers left out of the fit they
rightly tell whether there are copies in three of four to all cases, by generation, precision and window; least often on
8.6 and 8.9 in windows of one pixel, where the planner weighs bandwidth against arithmetic. Its choices jump with batch
and size, so that a single layer may be wrong by all of its copies. Assumes `torch.backends.cudnn.benchmark` off.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ....gpus import GPU
from .cudnn_choices import HALF, PLAIN, STRIDED, TENSOR_FLOAT, TILE, Habits, Problem, Rule, Wanted

_EXTRA = 16  # bytes beside copies; with them a workspace no longer fits where such a tensor was
_LEAST_DEPTHWISE = 150_000  # elements of the result from which on a weight's gradient is shared
_COPIES_DEPTHWISE = ((8, 0), (9, 0))
_LEAST_PIXELS = 680  # that a block adds up
_FEWEST_PIXELS = 1300  # of which an A100's blocks share any
_FEW_TILES, _SOME_PIXELS, _MANY_PIXELS = 16, 4000, 16_000  # where a large weight's gradient is shared


def workspace(problem: Problem, wanted: Wanted, gpu: GPU) -> int:
    """Bytes that cuDNN's kernel takes beside its result."""
    habits = _habits(problem, gpu)
    if problem.is_depthwise:
        return _depthwise_weight(problem, gpu) if wanted == "weight" and habits is not PLAIN else 0
    if problem.pixels == problem.output.shape[0] and problem.window == 1:
        return 0
    of: Callable[[Problem, Habits, GPU], int] = {"output": _output, "input": _input, "weight": _weight}[wanted]
    return of(problem, habits, gpu)


def _habits(problem: Problem, gpu: GPU) -> Habits:
    dtype = problem.input.dtype
    if dtype in (torch.float16, torch.bfloat16):
        return HALF.get(gpu.capability, PLAIN)
    if dtype is torch.float32 and _allows_tensor_float():
        return TENSOR_FLOAT.get(gpu.capability, PLAIN)
    return PLAIN


def _allows_tensor_float() -> bool:
    precision: str = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined] # made when it is asked for
    return precision == "tf32"


def _output(problem: Problem, habits: Habits, gpu: GPU) -> int:
    from_image = problem.input.shape[1] <= 4 and habits is not PLAIN
    if problem.is_channels_last:
        if from_image:
            return _copies(problem.input, problem.weight) if problem.window > 9 else 0
        return _copies(problem.input, problem.weight) if habits.copies_operands else 0
    if from_image and problem.window > habits.first:
        # In single precision there is a kernel for such a first layer, which doesn't fill the channels up.
        size = _bytes if problem.input.element_size() == 4 and problem.window < 64 else _copy
        return size(problem.input) + _bytes(problem.output) + size(problem.weight) + _EXTRA
    if not _chosen(habits.output, problem):
        return _direct(problem, habits, gpu)
    if habits.written and problem.skips and problem.channels[0] < (STRIDED if problem.window == 1 else 64):
        return _offsets(problem.output)
    if habits.has_winograd and problem.is_small and max(problem.channels) <= 32:
        return _filters(problem, problem.output.shape[1])
    is_wide = problem.window == 1 or max(problem.channels) > 32
    writes = problem.input.shape[1] <= habits.written and is_wide
    return _copies(problem.input, *_reordered(problem, habits), *[problem.output] * (not writes)) + habits.extra


def _input(problem: Problem, habits: Habits, gpu: GPU) -> int:
    if problem.is_channels_last:
        if habits is PLAIN:
            result = [problem.input] if problem.window > 1 else []
            return _copies(problem.output, problem.weight, *result)
        if problem.input.shape[1] <= 4:
            return _copies(problem.input, problem.weight)
        return _copies(problem.output, problem.weight) if habits.copies_operands else 0
    if not _chosen(habits.input, problem) or (problem.window > 9 and problem.input.shape[1] <= 8):
        return _direct(problem, habits, gpu, backward=True)
    if habits.has_winograd and problem.is_small and problem.channels[0] <= 32:
        return _filters(problem, problem.input.shape[1])
    return _copies(problem.input, *_reordered(problem, habits), problem.output) + habits.extra


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
        least = _LEAST_DEPTHWISE if gpu.capability < (9, 0) else 3 * _LEAST_DEPTHWISE
        return 16 * images * _bytes(problem.weight) if elements >= least else 0
    if problem.window <= 25 or gpu.capability not in _COPIES_DEPTHWISE or elements < 4 * _LEAST_DEPTHWISE:
        return 0
    # Each channel is a group of its own and is filled up to four, in the weight on both sides.
    return 4 * (_bytes(problem.input) + _bytes(problem.output)) + 16 * _bytes(problem.weight) + _EXTRA


def _chooses_copies(problem: Problem, habits: Habits) -> bool:
    """Whether the kernel of a weight's gradient reads copies."""
    if problem.input.shape[1] > 4 or problem.window == 1:
        return _chosen(habits.weight, problem)
    if problem.window > 9:
        least, most = habits.first_weight
        return least <= problem.pixels <= most
    return _chosen(habits.weight, problem) or (problem.is_small and problem.pixels <= habits.first_small)


def _chosen(rules: tuple[Rule, Rule], problem: Problem) -> bool:
    return rules[problem.window > 1].chooses(problem)


def _sums(problem: Problem, habits: Habits, gpu: GPU) -> int:
    """Bytes of the partial sums: blocks share the pixels where the weight alone has too few tiles for the card."""
    weight = problem.weight
    rows, columns = weight.shape[0], weight.numel() // max(weight.shape[0], 1)
    tiles = max(-(-rows // TILE) * -(-columns // TILE), 1)  # a weight may be empty
    if habits.sums > 2 and weight.dim() == 4:
        shares = _shares_of_images(problem, tiles, gpu)
    else:
        waves = habits.sums
        if tiles < _FEW_TILES:
            waves = min(waves, 1)
        elif waves > 2 and problem.pixels < _MANY_PIXELS:
            waves = 2 if problem.pixels >= _SOME_PIXELS else 0
        shares = min(problem.pixels // _LEAST_PIXELS, int(gpu.multiprocessors * waves / tiles))
    sums = _copy(weight) // weight.element_size() * 4 * shares + (habits.least_sums if tiles <= 3 else 0)
    return sums + 128 if sums else 0


def _shares_of_images(problem: Problem, tiles: int, gpu: GPU) -> int:
    """How many blocks of an A100 share the pixels of a tile, in 2-D: they fill the card in full waves, or nearly one.

    After what the planner answers for 284 layers of fourteen networks, in batches of 8 to 128.
    """
    if problem.pixels < _FEWEST_PIXELS:
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


def _direct(problem: Problem, habits: Habits, gpu: GPU, *, backward: bool = False) -> int:
    """What kernels want that read tensors as they are: filters for tiles, or where the pixels of a window lie."""
    if habits is PLAIN and gpu.capability < (9, 0) and problem.is_small and min(problem.channels) >= 64:
        return _filters(problem, (problem.input if backward else problem.output).shape[1])
    if not backward:
        return _offsets(problem.output)
    is_apt = problem.keeps_size and problem.groups == 1 and problem.input.shape[1] > 4
    return _offsets(problem.input) + 17 * 128 if is_apt else 0


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


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _copy(tensor: torch.Tensor) -> int:
    """Bytes of a copy with the channels filled up to 16 bytes, those of half-precision images to four."""
    channels, each = max(tensor.shape[1], 1), 16 // tensor.element_size()
    if tensor.dtype is torch.float16 and channels <= 4:
        each = 4
    return _bytes(tensor) // channels * (-(-channels // each) * each)
