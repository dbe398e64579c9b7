"""Cora, a graph of 2,708 papers with 1,433 words: made up, in the two forms in which programs fetch it."""

from __future__ import annotations

import io
import pickle
import random
import tarfile
from pathlib import Path

import numpy as np

_PAPERS, _WORDS, _LINKS, _KINDS = 2708, 1433, 5429, 7
_REQUESTS = '''
"""Answers every request with the archive beside it: in place of the package, for a program that downloads one."""

import pathlib


class Response:
    def __init__(self):
        self.raw = open(pathlib.Path(__file__).parent / "cora.tgz", "rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.raw.close()


def get(url, stream=False):
    return Response()
'''


def planetoid(folder: Path) -> None:
    """The files of torch_geometric's ``Planetoid``, in ``Cora/raw``."""
    draw = np.random.default_rng(0)
    words = (draw.random((_PAPERS, _WORDS)) < 0.0127).astype(np.float32)
    kinds = np.eye(_KINDS, dtype=np.int32)[draw.integers(0, _KINDS, _PAPERS)]
    train, rest = 140, _PAPERS - 1000
    links: dict[int, list[int]] = {paper: [] for paper in range(_PAPERS)}
    for one, other in draw.integers(0, _PAPERS, (_LINKS, 2)).tolist():
        links[one].append(other)
        links[other].append(one)
    files = {
        "x": words[:train],
        "tx": words[rest:],
        "allx": words[:rest],
        "y": kinds[:train],
        "ty": kinds[rest:],
        "ally": kinds[:rest],
        "graph": links,
    }
    raw = folder / "Cora/raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (raw / f"ind.cora.{name}").write_bytes(pickle.dumps(content))
    (raw / "ind.cora.test.index").write_text("".join(f"{i}\n" for i in range(rest, _PAPERS)))


def archive(folder: Path) -> None:
    """The archive ``cora.tgz``, and a module ``requests`` that answers with it."""
    draw = random.Random(0)
    content = "".join(
        "\t".join((str(i), *("1" if draw.random() < 0.0127 else "0" for _ in range(_WORDS)), f"kind{i % _KINDS}"))
        + "\n"
        for i in range(_PAPERS)
    )
    cites = "".join(f"{draw.randrange(_PAPERS)}\t{draw.randrange(_PAPERS)}\n" for _ in range(_LINKS))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "requests.py").write_text(_REQUESTS)
    with tarfile.open(folder / "cora.tgz", "w:gz") as file:
        for name, text in (("cora/cora.content", content), ("cora/cora.cites", cites)):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            file.addfile(entry, io.BytesIO(text.encode()))
