"""The fake engine's workspaces of convolutions, held against what cuDNN's planner answers for the card."""

from __future__ import annotations

import math

import pytest
import torch
from subprocesses import run_on

from vramkit.engines.fake.kernels.cudnn_choices import Problem, Wanted
from vramkit.engines.fake.kernels.cudnn_workspaces import workspace
from vramkit.gpus import find

# Layers of a ResNet-50 and a VGG at 224 pixels: channels in and out, pixels of a side, window, stride.
LAYERS = [
    (3, 64, 224, 7, 2), (64, 64, 56, 3, 1), (64, 256, 56, 1, 1), (256, 64, 56, 1, 1), (128, 128, 56, 3, 2),
    (128, 512, 28, 1, 1), (512, 128, 28, 1, 1), (256, 256, 14, 3, 1), (1024, 256, 14, 1, 1), (512, 512, 7, 3, 1),
    (64, 128, 112, 3, 1), (256, 256, 56, 3, 1), (256, 512, 28, 3, 1),
]  # fmt: skip
WANTED: tuple[Wanted, ...] = ("output", "input", "weight")

_MEASURE = """
import torch

def beside(function):
    "Bytes that were asked for at once, beyond what is there at the end."
    torch.cuda.reset_peak_memory_stats()
    before = function()
    stats = torch.cuda.memory_stats()
    return stats["requested_bytes.all.peak"] - stats["requested_bytes.all.current"]

result = []
for inside, outside, side, window, stride in {layers!r}:
    last = torch.channels_last if {last!r} else torch.contiguous_format
    make = dict(device="cuda", dtype=getattr(torch, {dtype!r}), memory_format=last)
    x = torch.empty(({batch!r}, inside, side, side), **make)
    w = torch.empty((outside, inside, window, window), **make)
    more = [stride] * 2, [window // 2] * 2, [1, 1], False, [0, 0], 1
    y = torch.ops.aten.convolution(x, w, None, *more)
    backward = lambda *mask: torch.ops.aten.convolution_backward(y, x, w, None, *more, [*mask, False])
    result.append([
        beside(lambda: torch.ops.aten.convolution(x, w, None, *more)),
        beside(lambda: backward(True, False)), beside(lambda: backward(False, True)),
    ])
"""


def problem(layer: tuple[int, ...], batch: int, dtype: torch.dtype, *, last: bool) -> Problem:
    inside, outside, side, window, stride = layer
    result = (side + 2 * (window // 2) - window) // stride + 1
    order = torch.channels_last if last else torch.contiguous_format

    def make(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta", memory_format=order)

    return Problem(
        input=make(batch, inside, side, side), weight=make(outside, inside, window, window),
        output=make(batch, outside, result, result), groups=1, is_channels_last=last,
    )  # fmt: skip


def said_and_real(gpu: str, dtype: torch.dtype, *, last: bool) -> tuple[list[Problem], list[int], list[int]]:
    """The common layers, and what each of the three results wants: by the rules, and by the planner."""
    batch = 16
    text = _MEASURE.format(layers=LAYERS, batch=batch, dtype=str(dtype).removeprefix("torch."), last=last)
    real = [size for layer in run_on(gpu, text) for size in layer]
    problems = [problem(layer, batch, dtype, last=last) for layer in LAYERS]
    return problems, [workspace(each, wanted, find(gpu)) for each in problems for wanted in WANTED], real


@pytest.mark.virtual_gpu
@pytest.mark.parametrize(
    ("gpu", "dtype"), [("t4", torch.float32), ("a100-80gb", torch.float32), ("h100", torch.float16)]
)
def test_most_results_and_gradients_of_inputs_want_it_to_the_byte(gpu: str, dtype: torch.dtype) -> None:
    _, said, real = said_and_real(gpu, dtype, last=False)

    pairs = [pair for number, pair in enumerate(zip(said, real, strict=True)) if WANTED[number % 3] != "weight"]
    assert sum(one == other for one, other in pairs) >= 3 / 4 * len(pairs)


@pytest.mark.virtual_gpu
def test_an_a100_shares_the_pixels_of_a_weights_gradient_about_as_the_planner_says() -> None:
    _, said, real = said_and_real("a100-80gb", torch.float32, last=False)

    pairs = list(zip(said, real, strict=True))[WANTED.index("weight") :: len(WANTED)]
    assert sum(abs(one - other) for one, other in pairs) < 0.03 * sum(real for _, real in pairs)


@pytest.mark.virtual_gpu
def test_separate_channels_that_lie_last_have_a_workspace_for_their_weight() -> None:
    """Layers as in a ConvNeXt; with the channels first, torch's own kernel takes none."""
    code = """
    import torch
    from vramkit.engines.fake.kernels.cudnn_choices import Problem
    from vramkit.engines.fake.kernels.cudnn_workspaces import workspace
    result = []
    layers = (96, 56, "float32"), (192, 28, "float32"), (96, 56, "bfloat16"), (384, 14, "bfloat16")
    for channels, side, dtype in layers:
        x = torch.empty(8, channels, side, side, device="cuda", dtype=getattr(torch, dtype))
        w = torch.empty(channels, 1, 7, 7, device="cuda", dtype=x.dtype)
        for images in (x.to(memory_format=torch.channels_last), x):
            arguments = (images, images, w, None, [1, 1], [3, 3], [1, 1], False, [0, 0], channels)
            torch.cuda.reset_peak_memory_stats()
            kept = torch.ops.aten.convolution_backward(*arguments, [False, True, False])
            stats = torch.cuda.memory_stats()
            real = stats["requested_bytes.all.peak"] - stats["requested_bytes.all.current"]
            problem = Problem(input=images, weight=w, output=images, groups=channels, is_channels_last=images is not x)
            result.append((real, workspace(problem, "weight", gpu.gpu) if images is not x else 0))
            del kept
    """
    found = run_on("a100-80gb", code)

    assert all(real == said for real, said in found)
    assert all(real > 0 for real, _ in found[::2])


@pytest.mark.virtual_gpu
@pytest.mark.parametrize(
    ("gpu", "dtype", "last", "limit"),
    [
        ("h100", torch.float32, False, 0.08), ("t4", torch.float32, False, 0.01),
        ("a100-80gb", torch.bfloat16, False, 0.12), ("b200", torch.bfloat16, True, 0.07),
    ],
)  # fmt: skip
def test_common_layers_want_what_the_planner_says(gpu: str, dtype: torch.dtype, last: bool, limit: float) -> None:
    """Off by at most such a part of what is convolved."""
    problems, said, real = said_and_real(gpu, dtype, last=last)

    convolved = sum(each.input.nbytes + each.output.nbytes for each in problems) * len(WANTED)
    assert sum(abs(one - other) for one, other in zip(said, real, strict=True)) < limit * convolved
    assert abs(sum(said) - sum(real)) < limit / 2 * convolved


def test_without_tensor_float_a_weights_gradient_wants_nothing() -> None:
    each = problem((512, 2048, 7, 1, 1), 16, torch.float32, last=False)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        allowed = workspace(each, "weight", find("a100-80gb"))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        forbidden = workspace(each, "weight", find("a100-80gb"))

    assert forbidden == 0
    assert allowed > each.input.nbytes + each.output.nbytes


def test_a_layer_without_channels_wants_no_sums() -> None:
    layer = problem((64, 0, 56, 1, 1), 16, torch.float32, last=False)

    assert workspace(layer, "weight", find("a100-80gb")) == 0


def test_filled_channels_and_partial_sums_are_counted() -> None:
    images = problem((3, 64, 224, 7, 2), 16, torch.bfloat16, last=True)

    copied = images.input.nbytes // 3 * 8  # 16 bytes a pixel

    assert math.isclose(workspace(images, "output", find("h100")), copied, rel_tol=0.01)
    assert workspace(images, "weight", find("a100-80gb")) > copied
