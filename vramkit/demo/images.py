"""The demo's images: real ones that scikit-learn brings, as arrays, and as text. Knows no model.

Not tensors: on the CPU the profile would show the whole set beside each batch.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Data = Literal["grey", "colour"]
SHAPES: dict[str, tuple[int, int, int]] = {"grey": (1, 28, 28), "colour": (3, 32, 32)}
"""Channels, height and width of an image: those of MNIST, and of CIFAR-10."""
CLASSES = 10
_BANDS = 5  # of each of two photographs
_PER_CLASS = 200
_RAMP = " .:-=+*#%@"


@dataclass(frozen=True)
class Images:
    """Labelled images."""

    pixels: npt.NDArray[np.float32]
    """From 0 to 1; shape ``(count, channels, height, width)``."""
    labels: npt.NDArray[np.int64]
    """Shape ``(count,)``."""
    source: str
    """What they are."""

    def batches(self, size: int, device: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of any size on a device, without end; an image comes up as often as it has to."""
        generator = np.random.default_rng(0)
        while True:
            chosen = generator.integers(len(self.pixels), size=size)
            # No name for a batch here: it would live on, into the making of the next one.
            yield (
                torch.from_numpy(self.pixels[chosen]).to(device),
                torch.from_numpy(self.labels[chosen]).to(device),
            )


def load(data: Data) -> Images:
    """Real images; where scikit-learn is not installed, generated ones of the same shape."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            datasets = importlib.import_module("sklearn.datasets")
            return _digits(datasets) if data == "grey" else _photographs(datasets)
    except ImportError:  # of scikit-learn, or of Pillow, which it opens photographs with
        generator = np.random.default_rng(0)
        return Images(
            generator.random((2048, *SHAPES[data]), np.float32),
            generator.integers(CLASSES, size=2048),
            'generated images (real ones come with pip install "vramkit[demo]")',
        )


def _digits(datasets: Any) -> Images:
    small, labels = datasets.load_digits(return_X_y=True)
    pixels = _scaled(small.reshape(-1, 1, 8, 8) / 16, SHAPES["grey"])
    source = f"scikit-learn's {len(labels):,} handwritten digits, scaled from 8x8 to 28x28"
    return Images(pixels, np.asarray(labels, np.int64), source)


def _photographs(datasets: Any) -> Images:
    """Square pieces of two photographs; the class says in which of five bands, from top to bottom, of which one."""
    generator = np.random.default_rng(0)
    pieces, labels = [], []
    for number, photograph in enumerate(datasets.load_sample_images().images[:2]):
        side = len(photograph) // _BANDS
        for band in range(_BANDS):
            for left in generator.integers(photograph.shape[1] - side, size=_PER_CLASS):
                piece = photograph[band * side : (band + 1) * side, left : left + side]
                pieces.append(piece.transpose(2, 0, 1))
                labels.append(number * _BANDS + band)
    pixels = _scaled(np.stack(pieces) / 255, SHAPES["colour"])
    source = f"{len(labels):,} pieces of scikit-learn's two photographs, scaled to 32x32"
    return Images(pixels, np.array(labels, np.int64), source)


def _scaled(pixels: npt.NDArray[Any], shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    scaled = nn.functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(pixels, np.float32)),
        size=shape[1:],
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )
    # Contiguous, so that the model flattens a batch without a copy.
    result: npt.NDArray[np.float32] = scaled.clamp(0, 1).contiguous().numpy()
    return result


def drawn(images: npt.NDArray[np.float32], *, colours: bool) -> str:
    """Images side by side as text, two rows of pixels in each line.

    Args:
        images: shape ``(count, channels, height, width)``.
        colours: with a terminal's colours, a pixel in each half of a character; else in shades of ASCII.
    """
    count, channels, height, width = images.shape
    # (lines, upper or lower, count, width, channels)
    halves = images.transpose(2, 0, 3, 1).reshape(height // 2, 2, count, width, channels)
    draw = _in_colours if colours else _in_shades
    return "\n".join("  ".join(map(draw, line[0], line[1])).rstrip() for line in halves)


def _in_shades(upper: npt.NDArray[np.float32], lower: npt.NDArray[np.float32]) -> str:
    light = (upper.mean(axis=1) + lower.mean(axis=1)) / 2
    return "".join(_RAMP[min(int(each * len(_RAMP)), len(_RAMP) - 1)] for each in light)


def _in_colours(upper: npt.NDArray[np.float32], lower: npt.NDArray[np.float32]) -> str:
    def code(pixel: npt.NDArray[np.float32]) -> str:
        return ";".join(str(round(float(each) * 255)) for each in np.broadcast_to(pixel, 3))

    pairs = zip(upper, lower, strict=True)
    return "".join(f"\x1b[38;2;{code(a)};48;2;{code(b)}m▀" for a, b in pairs) + "\x1b[0m"
