"""cuDNN's plans on a virtual GPU: those that need cuBLASLt, and those that depend on how a card is cut."""

from __future__ import annotations

from math import ceil

import pytest
from subprocesses import run_on

pytest.importorskip("torch")

pytestmark = pytest.mark.virtual_gpu

IMAGES = 16
_ASK = """
import torch
torch.cuda.memory._record_memory_history("all", context=None, stacks="python")
torch.backends.cudnn.allow_tf32 = True

def asked(call):
    "Bytes of the blocks that a call asks for, but for its results."
    begin = len(torch.cuda.memory._snapshot()["device_traces"][0])
    kept = [each for each in call() if each is not None]
    trace = torch.cuda.memory._snapshot()["device_traces"][0][begin:]
    sizes = [entry["size"] for entry in trace if entry["action"] == "alloc"]
    for each in kept:
        sizes.remove(each.nbytes)
    return sum(sizes)

result = []
for inside, outside, side, window in {layers!r}:
    order = torch.channels_last if {last!r} else torch.contiguous_format
    make = dict(device="cuda", memory_format=order)
    x, y = (torch.empty(({images}, channels, side, side), **make) for channels in (inside, outside))
    w = torch.empty((outside, inside, window, window), **make)
    more = [1, 1], [window // 2] * 2, [1, 1], False, [0, 0], 1
    backward = torch.ops.aten.convolution_backward
    result.append([
        asked(lambda: [torch.ops.aten.convolution(x, w, None, *more)]),
        asked(lambda: backward(y, x, w, None, *more, [True, False, False])),
        asked(lambda: backward(y, x, w, None, *more, [False, True, False])),
    ])
"""


def asked_on(gpu: str, *layers: tuple[int, ...], last: bool = False) -> list[list[int]]:
    """Of layers (channels in and out, pixels of a side, window): what result and gradients want beside themselves."""
    found: list[list[int]] = run_on(gpu, _ASK.format(layers=layers, last=last, images=IMAGES))
    return found


def test_a_window_of_one_pixel_is_a_product_without_copies() -> None:
    inside, outside = 64, 256

    [wanted] = asked_on("a100-80gb", (inside, outside, 56, 1))

    assert wanted == [0, 0, IMAGES * inside * outside * 4]  # a gradient of the weight for each image


def test_a_t4_keeps_transformed_tiles() -> None:
    channels, side = 256, 14

    [wanted] = asked_on("t4", (channels, channels, side, 3))

    tiles = IMAGES * ceil(side / 4) ** 2  # of 4 x 4 pixels, which become 6 x 6
    assert wanted == [4 * 36 * (2 * tiles * channels + channels**2)] * 3


def test_every_multiprocessor_of_a_hopper_has_a_tile_of_a_weights_partial_sums() -> None:
    layers = [(64, 64, 56, 3), (128, 128, 28, 3), (256, 256, 14, 3)]

    wanted = asked_on("h200", *layers, last=True)

    for (channels, _, _, window), (*_, sums) in zip(layers, wanted, strict=True):
        tile = 4 * 64 * min(channels, 256)
        tiles = channels**2 * window**2 * 4 // tile
        assert 132 // tiles * tiles * tile < sums < 132 * tile + 1024
