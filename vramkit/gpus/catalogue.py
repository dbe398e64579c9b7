"""The catalogue of GPUs: what the driver reports of each card. Knows figures and names; knows no torch.

The cards are the rows of ``cards.csv``. Where its figures come from:

* ``memory`` is ``total_memory`` of ``torch.cuda.get_device_properties`` (``cudaGetDeviceProperties``) on Linux, in
  bytes as the driver reports it, which is less than the board carries. ``record`` says what kind of public record it
  was taken from: *properties* (a printed ``_CudaDeviceProperties``), *deviceQuery*, or a *YOLO log* (Ultralytics prints
  the same figure in MiB). Drivers and boards differ by up to some 200 MiB; a record of a newer driver was preferred.
* Where no record was found (an empty field; Windows shows all that the board carries), it is **derived** from the
  board's total: less 480 MiB, or 5 % if that is less, and at least 1.5 %. All records lack less than that, but those of
  a laptop's RTX 4050 and of an A100 of 40 GB. `is_derived` tells.
* ``board_memory`` is the total that ``nvidia-smi`` shows. Of a slice (MIG) it is all that CUDA has.
* ``capability``, ``multiprocessors``, ``l2_cache``, clocks and bus width: NVIDIA's data sheets, the same records.
* what follows from the capability alone (threads, blocks and shared memory of a multiprocessor): the table "Technical
  Specifications per Compute Capability" of the CUDA programming guide.
* ``context`` is **assumed**: it depends on the driver and on which kernels a program loads (``context.py``). The
  default, 426 MiB, was measured on an RTX 6000 Ada with torch 2.10 (CUDA 13); an RTX 3090 took 256 MiB with torch 2.7.
  Both are published. An H200 was measured for this (torch 2.11, CUDA 13.0, driver 580.159.04): 751 to 769 MiB in three
  trainings.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError, shown
from ..sizes import format_size, parse_size
from .context import measured_context
from .spellings import one_of_several, plain, rented, spellings

MIB = 1 << 20

_CONTEXT = 426  # MiB

MAX_MEMORY = 4 << 40
"""Bytes: the maximum of a card's memory, as no virtual device can have more."""

_MAX_NAME = 256  # characters; as the driver's own
_ABOVE_0 = ("memory", "multiprocessors")
_FROM_0 = ("board_memory", "l2_cache", "clock_mhz", "memory_clock_mhz", "bus_width", "context")


@dataclass(frozen=True, slots=True)
class _Generation:
    """What every card of a compute capability has."""

    threads: int
    blocks: int
    shared_kib: int
    block_kib: int


# Resident threads and blocks of a multiprocessor, its shared memory, and the maximum that one block may opt in to.
_GENERATIONS = {
    (6, 0): _Generation(2048, 32, 64, 48),
    (6, 1): _Generation(2048, 32, 96, 48),
    (7, 0): _Generation(2048, 32, 96, 96),
    (7, 5): _Generation(1024, 16, 64, 64),
    (8, 0): _Generation(2048, 32, 164, 163),
    (8, 6): _Generation(1536, 16, 100, 99),
    (8, 9): _Generation(1536, 24, 100, 99),
    (9, 0): _Generation(2048, 32, 228, 227),
    (10, 0): _Generation(2048, 32, 228, 227),
    (10, 3): _Generation(2048, 32, 228, 227),
    (12, 0): _Generation(1536, 24, 100, 99),
}


def _check_name(name: str) -> None:
    """A name goes to the C library as part of a line, and to terminals as it is."""
    if not isinstance(name, str) or len(name) > _MAX_NAME or not name.isprintable() or set(name) & set(';="\\'):
        raise UsageError(
            "A GPU's name was expected",
            f"got {shown(name)}",
            f'It may not hold ; = " \\ or what is not printable, and has at most {_MAX_NAME} characters',
            "Give a name such as 'my-card'",
        )


def _too_large(asked: str, found: str) -> UsageError:
    return UsageError(
        asked, found, f"No virtual card is larger than {format_size(MAX_MEMORY)}", "Give it that, or less"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GPU:
    """A card, as the driver describes it.

    ::

        vramkit.GPU(name="my-card", memory=20 << 30, capability=(8, 6), multiprocessors=64)

    Raises:
        UsageError: a figure can't be, or no card of that capability is known.
    """

    name: str
    """What it is called here: lower case, such as ``"a100-40gb"``."""
    memory: int
    """Bytes that CUDA calls the device's total memory."""
    capability: tuple[int, int]
    """Compute capability, such as ``(8, 0)``."""
    multiprocessors: int
    """Streaming multiprocessors."""
    product: str = ""
    """What the driver calls it, such as ``"NVIDIA A100-SXM4-40GB"``; empty: the name."""
    board_memory: int = 0
    """Bytes that ``nvidia-smi`` calls total; 0: the same as ``memory``."""
    l2_cache: int = 6 * MIB
    """Bytes of level 2 cache."""
    clock_mhz: int = 1500
    """Highest clock of the multiprocessors, MHz."""
    memory_clock_mhz: int = 5000
    """Clock of the memory, MHz."""
    bus_width: int = 256
    """Width of the memory bus, bits."""
    context: int = _CONTEXT * MIB
    """Bytes that a CUDA context takes of the device. Assumed: it depends on driver and program. ``vramkit gpus
    --measure`` measures it, and the catalogue's card has that from then on.
    """

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_name(self.product)
        if self.capability not in tuple(_GENERATIONS):  # a list has no hash
            known = ", ".join(f"{major}.{minor}" for major, minor in _GENERATIONS)
            raise UsageError(
                f"A GPU of compute capability {shown(self.capability)} was described",
                f"known are {known}",
                "How much shared memory and how many threads a multiprocessor has follows from it",
                "Give the capability of the most similar card",
            )
        for figure in (*_ABOVE_0, *_FROM_0):
            value = getattr(self, figure)
            is_number = hasattr(value, "__index__") and not isinstance(value, bool)
            if not is_number or value < (figure in _ABOVE_0):
                raise UsageError(
                    f"The GPU {self.name!r} was described",
                    f"with {figure}={shown(value)}",
                    "Sizes are bytes and counts, above 0" if figure in _ABOVE_0 else "It is a whole number from 0 on",
                )
        if max(self.memory, self.board_memory, self.context) > MAX_MEMORY:
            raise _too_large(
                f"The GPU {self.name!r} was described",
                f"with memory={shown(self.memory)}, board_memory={shown(self.board_memory)} and "
                f"context={shown(self.context)}",
            )
        object.__setattr__(self, "product", self.product or self.name)
        object.__setattr__(self, "board_memory", max(self.board_memory, self.memory))

    @property
    def threads_per_multiprocessor(self) -> int:
        """Threads that a multiprocessor can hold at a time."""
        return _GENERATIONS[self.capability].threads

    @property
    def blocks_per_multiprocessor(self) -> int:
        """Thread blocks that a multiprocessor can hold at a time."""
        return _GENERATIONS[self.capability].blocks

    @property
    def shared_memory_per_multiprocessor(self) -> int:
        """Bytes of shared memory of a multiprocessor."""
        return _GENERATIONS[self.capability].shared_kib * 1024

    @property
    def shared_memory_per_block(self) -> int:
        """Bytes of shared memory that one block may opt in to."""
        return _GENERATIONS[self.capability].block_kib * 1024

    def __str__(self) -> str:
        return f"{self.name} ({self.product}, {format_size(self.memory)})"


def _card(row: dict[str, str]) -> GPU:
    board = int(row["board_mib"])
    major, minor = row["capability"].split(".")
    return GPU(
        name=row["name"],
        product=row["product"],
        memory=int(float(row["memory_mib"] or _derived(board)) * MIB),
        board_memory=board * MIB,
        capability=(int(major), int(minor)),
        multiprocessors=int(row["multiprocessors"]),
        l2_cache=int(row["l2_kib"]) * 1024,
        clock_mhz=int(row["clock_mhz"]),
        memory_clock_mhz=int(row["memory_clock_mhz"]),
        bus_width=int(row["bus_width"]),
        context=int(row["context_mib"] or _CONTEXT) * MIB,
    )


def _derived(board: int) -> int:
    """MiB that CUDA has of a board's, where nobody published it: rather too few."""
    return board - int(max(min(480, 0.05 * board), 0.015 * board))


with (Path(__file__).parent / "cards.csv").open(encoding="utf-8", newline="") as _file:
    _ROWS = {row["name"]: row for row in csv.DictReader(_file)}

_CARDS = tuple(_card(row) for row in _ROWS.values())

CATALOGUE: dict[str, GPU] = {card.name: card for card in _CARDS}
"""Every card by its name."""

_MIN_BYTES = 1 << 20  # a smaller plain number is not meant as bytes: gpu=24

GENERIC = "a100-80gb"
"""Whose properties a card has of which only the memory is given; also the card that is assumed where none is named."""


def all_gpus() -> tuple[GPU, ...]:
    """Every card of the catalogue, in its order: by kind, older ones first, then slices."""
    return _CARDS


def common_gpus() -> tuple[GPU, ...]:
    """Those that most people mean, for a picture that has no room for all."""
    return tuple(card for card in _CARDS if _ROWS[card.name]["common"])


def is_derived(card: GPU) -> bool:
    """Whether a card's memory is derived from what its board carries, because nobody published it."""
    return _is_listed(card) and not _ROWS[card.name]["memory_mib"]


def record(card: GPU) -> str:
    """The kind of public record that a card of the catalogue is from; empty for another."""
    return _ROWS[card.name]["record"] if _is_listed(card) else ""


def _is_listed(card: GPU) -> bool:
    """Whether a card is the catalogue's, whatever was measured of its context."""
    listed = CATALOGUE.get(card.name)
    return listed is not None and dataclasses.replace(card, context=listed.context) == listed


def find(gpu: str | int | GPU) -> GPU:
    """The card that is meant.

    ::

        find("A100 40GB")      # the catalogue's, however it is spelt
        find("24 GiB")         # a card with that memory, otherwise like the A100

    Args:
        gpu: a name of the catalogue (case, spaces, hyphens and underscores don't matter), a product's name, a size
            with a unit, bytes from 1 MiB on, or a ``GPU``, which is returned as it is.

    Raises:
        UsageError: no such card; the nearest names are listed.
    """
    if isinstance(gpu, GPU):
        return gpu
    if isinstance(gpu, str) and (card := _named(gpu)) is not None:
        measured = measured_context(card.product)
        return card if measured is None else dataclasses.replace(card, context=measured)
    try:
        memory = parse_size(gpu)
    except UsageError:
        raise _unknown(gpu) from None
    if memory < (1 if isinstance(gpu, str) else _MIN_BYTES):
        raise _unknown(gpu, memory)
    if memory > MAX_MEMORY:
        raise _too_large(f"The GPU {shown(gpu)} was asked for", f"it would have {format_size(memory)}")
    human = format_size(memory)
    return dataclasses.replace(
        CATALOGUE[GENERIC], name=human, product=f"Virtual GPU {human}", memory=memory, board_memory=memory
    )


_NAMES = spellings(
    (each.name, each.product, each.board_memory // MIB, _ROWS[each.name]["aliases"].split()) for each in _CARDS
)
"""Names of the catalogue by everything that they may be called."""


def _named(name: str) -> GPU | None:
    wanted = plain(name)
    found = _NAMES.get(wanted) or _NAMES.get(f"{wanted}b")  # "A100 40G"
    return None if found is None else CATALOGUE[found]


def _unknown(gpu: object, memory: int | None = None) -> UsageError:
    """What to tell of a card that can't be found, or of a size that can't be one's."""
    text = gpu[:_MAX_NAME] if isinstance(gpu, str) else str(memory)
    asked = f"The GPU {shown(gpu)} was asked for"
    if machine := rented(text):
        whose, *cards = machine
        have = "what such a machine has" if len(cards) == 1 else "one of what it gives"
        return UsageError(asked, f"it is a machine of {whose}", instead=f"Name {have}: {' or '.join(map(repr, cards))}")
    wanted = plain(one_of_several(text) or text)
    # "a100" means one of the A100s, however close in letters "h100" may be.
    within = [_NAMES[name] for name in _NAMES if len(wanted) > 1 and wanted in name]
    within.sort(key=lambda name: ("g." in name, _CARDS.index(CATALOGUE[name])))  # whole cards before slices
    close = [_NAMES[name] for name in difflib.get_close_matches(wanted, _NAMES, n=4, cutoff=0.5)]
    near = list(dict.fromkeys([*within, *close]))
    found = "it is neither in the catalogue nor a size"
    if memory is not None:
        found = f"it would have {format_size(memory)}"
    elif near:
        found += f"; nearest are {', '.join(map(repr, near[:6]))}"
    why = "Each card has its own memory, and so has each process: one is named" if one_of_several(text) else ""
    number = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*g?i?b?\s*", text, re.IGNORECASE)
    meant = f"Write '{number[1]} GiB' if that is meant; or name" if number and 0 < float(number[1]) <= 4096 else "Name"
    return UsageError(
        asked,
        found,
        why,
        f"{meant} one of those that `vramkit gpus` lists, a size such as '24 GiB', or describe it with "
        "vramkit.GPU(...)",
    )
