"""Texts of random words and characters, as the small language models of the examples read them."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np


def characters(folder: Path) -> None:
    """nanoGPT's prepared Shakespeare: 65 characters, as ``train.bin``, ``val.bin`` and ``meta.pkl``."""
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, number in (("train", 200_000), ("val", 20_000)):
        draw.integers(0, 65, number).astype(np.uint16).tofile(folder / f"{split}.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 65, "itos": {}, "stoi": {}}))


def words(folder: Path) -> None:
    """A corpus like WikiText-2, a tenth of its length, with most of its vocabulary."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = [f"word{i}" for i in range(30_000)]
    for split, number in (("train", 200_000), ("valid", 20_000), ("test", 20_000)):
        chosen = [draw.choice(vocabulary) for _ in range(number)]
        lines = [" ".join(chosen[i : i + 20]) for i in range(0, number, 20)]
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
