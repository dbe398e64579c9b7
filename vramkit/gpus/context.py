"""What CUDA's context and libraries take of a card beside torch's memory: what is known of it, and what was measured.

Knows figures, and the file in which this user's measurements are kept; runs nothing, and knows no torch.

A context is not one figure. The driver takes a base for itself, by card and driver; the first kernel brings its module
and room for its threads' own memory; each thread that multiplies has a handle of cuBLAS of its own; cuDNN and cuSOLVER
bring more. On an H200 (driver 580, CUDA 13.0, torch 2.11) in MiB: 527 alone, 92 for the first kernel, 66 for each
handle that multiplies (the program's thread and autograd's), 18 for cuDNN, 96 for cuSOLVER. With
``CUDA_MODULE_LOADING=EAGER``, and before CUDA 11.7, all kernels of all libraries are loaded: 1,259 to 2,451 there.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Between what contexts of a card lie, bytes."""

    least: int
    most: int
    where: str
    """How that is known, in a few words."""

    def __str__(self) -> str:
        if self.least == self.most:
            return self.where
        return f"{self.where}: {self.least // _MIB} to {self.most // _MIB} MiB"


_SEEN = {
    # Measured for this (benchmarks/real_gpu): a first kernel; everything, one after another.
    "NVIDIA H200": (619, 807),
    # milabench's 1,239 to 1,411 MiB beside reserved memory, as NVML's older call counts them: less the 615 MiB that the
    # driver of an H200 keeps for itself.
    "NVIDIA H100 80GB HBM3": (624, 796),
}
_ELSEWHERE = Known(least=256 * _MIB, most=807 * _MIB, where="seen elsewhere")
"""An RTX 3090 with torch 2.7, published; an H200 with all libraries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a context took on this machine, in the order in which things were used first."""

    stages: Mapping[str, int]
    """Bytes beside torch's memory, by what had been used by then; the last one is what a training takes."""
    torch: str
    driver: str

    @property
    def context(self) -> int:
        """Bytes that predictions take it to be."""
        return list(self.stages.values())[-1]

    @property
    def is_virtual(self) -> bool:
        """Whether there was no card: a virtual GPU's context is assumed, not measured."""
        return "vramkit" in self.driver


def known(product: str, context: int) -> Known | None:
    """Between what a card's context lies; None: it was given with the card, and nothing says what it could be.

    Args:
        product: of the card.
        context: bytes that it is taken to be.
    """
    if context == measured_context(product):
        return Known(least=context, most=context, where="as measured on this machine")
    found = _ELSEWHERE
    if product in _SEEN:
        least, most = (size * _MIB for size in _SEEN[product])
        found = Known(least=least, most=most, where="seen on such cards")
    return found if found.least <= context <= found.most else None


def measured_context(product: str) -> int | None:
    """Bytes that were measured of such a card on this machine; None: nobody did."""
    measured = measurements().get(product)
    return None if measured is None else measured.context


# -- the file ----------------------------------------------------------------------------------------------------------


def file() -> Path:
    """Where measurements are kept: ``$XDG_CONFIG_HOME/vramkit/contexts.json``, else in ``~/.config``.

    Raises:
        RuntimeError: this user has no home.
    """
    root = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    if not root.is_absolute():  # its specification: to be ignored
        root = Path.home() / ".config"
    return root / "vramkit" / "contexts.json"


def measurements() -> dict[str, Measured]:
    """What was measured on this machine, by the cards' products; empty without the file, or if it is no such file."""
    try:
        text = file().read_text(encoding="utf-8")
    except (OSError, RuntimeError, UnicodeError):
        return {}
    with contextlib.suppress(ValueError, TypeError, AttributeError, LookupError):
        return {name: _checked(saved) for name, saved in json.loads(text).items()}
    return {}


def _checked(saved: Mapping[str, Any]) -> Measured:
    stages = {str(name): size for name, size in saved["stages"].items()}
    if not stages or not all(isinstance(size, int) and 0 <= size < 1 << 40 for size in stages.values()):
        raise ValueError
    return Measured(stages=stages, torch=str(saved["torch"]), driver=str(saved["driver"]))


def keep(found: Mapping[str, Measured]) -> Path:
    """Keep measurements beside those of other cards, and return the file.

    Raises:
        OSError, RuntimeError: it can't be written.
    """
    path = file()
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({name: asdict(each) for name, each in (measurements() | dict(found)).items()}, indent=1)
    handle, scratch = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text + "\n")
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    return path
