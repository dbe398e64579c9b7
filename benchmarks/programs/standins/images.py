"""Images of random pixels, in the files that torchvision, ``datasets`` and ultralytics read."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np


def mnist(folder: Path, *, train: int = 3000, test: int = 2000) -> None:
    """MNIST as torchvision keeps it, in ``MNIST/raw``: with so many images."""
    draw = np.random.default_rng(0)
    raw = folder / "MNIST/raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name, number in (("train", train), ("t10k", test)):
        images = draw.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        kinds = draw.integers(0, 10, number, dtype=np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, number, 28, 28) + images.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, number) + kinds.tobytes())


def full_mnist(folder: Path) -> None:
    """The same with as many images as the real one, for programs that split it."""
    mnist(folder, train=60_000, test=10_000)


def folders(folder: Path) -> None:
    """A folder for each of four classes, in ``images/train`` and ``images/val``."""
    draw = np.random.default_rng(0)
    for split, number in (("train", 24), ("val", 8)):
        for kind in range(4):
            for i in range(number):
                _write(folder / f"images/{split}/class{kind}/{i}.jpg", draw.integers(0, 256, (256, 256, 3), np.uint8))


def boxes(folder: Path) -> None:
    """Images with boxes of 80 classes, as ``toy.yaml`` tells ultralytics."""
    draw = np.random.default_rng(0)
    for split, number in (("train", 32), ("val", 8)):
        for i in range(number):
            _write(folder / f"data/images/{split}/{i}.jpg", draw.integers(0, 256, (480, 640, 3), np.uint8))
            rows = [(int(draw.integers(80)), *draw.uniform(0.2, 0.6, 4)) for _ in range(draw.integers(1, 8))]
            label = folder / f"data/labels/{split}/{i}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("".join(" ".join(str(each) for each in row) + "\n" for row in rows))
    names = "".join(f"  {i}: class{i}\n" for i in range(80))
    (folder / "toy.yaml").write_text(f"path: {folder / 'data'}\ntrain: images/train\nval: images/val\nnames:\n{names}")


def _write(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
