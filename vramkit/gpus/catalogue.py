"""The catalogue of GPUs: what the driver reports of each card. Knows figures and names; knows no torch.

Where the figures come from:

* ``memory`` is ``total_memory`` of ``torch.cuda.get_device_properties`` (``cudaGetDeviceProperties``), in bytes as the
  driver reports it, which is less than the board carries. Every row says in a comment what kind of public record it was
  taken from: *properties* (a printed ``_CudaDeviceProperties``), *deviceQuery*, or a *YOLO log* (Ultralytics prints the
  same figure in MiB). Drivers differ by some ten MiB among each other; a record of a newer driver was preferred.
* ``board_memory`` is the total that ``nvidia-smi`` shows.
* ``capability``, ``multiprocessors``, ``l2_cache``, clocks and bus width: NVIDIA's data sheets, the same records.
* what follows from the capability alone (threads, blocks and shared memory of a multiprocessor): the table "Technical
  Specifications per Compute Capability" of the CUDA programming guide.
* ``context`` is **assumed**: it depends on the driver and on which kernels a program loads (``context.py``). The
  default, 426 MiB, was measured on an RTX 6000 Ada with torch 2.10 (CUDA 13); an RTX 3090 took 256 MiB with torch 2.7.
  Both are published. An H200 was measured for this (torch 2.11, CUDA 13.0, driver 580.159.04): 751 to 769 MiB in three
  trainings.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass

from ..errors import UsageError, shown
from ..sizes import format_size, parse_size
from .context import measured_context

MIB = 1 << 20

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
    (7, 0): _Generation(2048, 32, 96, 96),
    (7, 5): _Generation(1024, 16, 64, 64),
    (8, 0): _Generation(2048, 32, 164, 163),
    (8, 6): _Generation(1536, 16, 100, 99),
    (8, 9): _Generation(1536, 24, 100, 99),
    (9, 0): _Generation(2048, 32, 228, 227),
    (10, 0): _Generation(2048, 32, 228, 227),
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
    context: int = 426 * MIB
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


def _card(
    name: str,
    product: str,
    memory_mib: float,
    board_mib: int,
    capability: tuple[int, int],
    multiprocessors: int,
    l2_kib: int,
    clock_mhz: int,
    memory_clock_mhz: int,
    bus_width: int,
    context_mib: int = 426,
) -> GPU:
    return GPU(
        name=name,
        product=product,
        memory=int(memory_mib * MIB),
        board_memory=board_mib * MIB,
        capability=capability,
        multiprocessors=multiprocessors,
        l2_cache=l2_kib * 1024,
        clock_mhz=clock_mhz,
        memory_clock_mhz=memory_clock_mhz,
        bus_width=bus_width,
        context=context_mib * MIB,
    )


_GEFORCE = "NVIDIA GeForce"

#          name            product                       MiB     board  capab. SMs  L2 KiB  MHz   mem.   bus
_CARDS = (
    # properties, 2024 and later (older drivers: 15,079 to 15,109)
    _card("t4", "Tesla T4", 15095, 15360, (7, 5), 40, 4096, 1590, 5001, 256),
    # properties
    _card("v100-16gb", "Tesla V100-SXM2-16GB", 16160, 16384, (7, 0), 80, 6144, 1530, 877, 4096),
    # YOLO log, torch 2.6
    _card("v100-32gb", "Tesla V100-SXM2-32GB", 32494, 32768, (7, 0), 80, 6144, 1530, 877, 4096),
    # properties, torch 1.8
    _card("rtx2080ti", f"{_GEFORCE} RTX 2080 Ti", 11019, 11264, (7, 5), 68, 5632, 1545, 7000, 352),
    # properties
    _card("rtx3060", f"{_GEFORCE} RTX 3060", 11938, 12288, (8, 6), 28, 3072, 1777, 7501, 192),
    # properties (24,259) and YOLO logs (24,124 to 24,268); the context: published with torch 2.7
    _card("rtx3090", f"{_GEFORCE} RTX 3090", 24259, 24576, (8, 6), 82, 6144, 1695, 9751, 384, 256),
    # YOLO log, torch 2.12
    _card("rtx4060ti", f"{_GEFORCE} RTX 4060 Ti", 7806, 8188, (8, 9), 34, 32768, 2535, 9001, 128),
    # YOLO logs, torch 1.13 and 2.5 (11,994 and 12,002; Windows says 12,282)
    _card("rtx4070", f"{_GEFORCE} RTX 4070", 12002, 12282, (8, 9), 46, 36864, 2475, 10501, 192),
    # properties
    _card("rtx4080", f"{_GEFORCE} RTX 4080", 16049, 16376, (8, 9), 76, 65536, 2505, 11201, 256),
    # YOLO logs (24,177 to 24,217; 24,210 with torch 2.5), out-of-memory texts "23.64 GiB"; Windows says 24,563
    _card("rtx4090", f"{_GEFORCE} RTX 4090", 24210, 24564, (8, 9), 128, 73728, 2520, 10501, 384),
    # deviceQuery, 33,680,457,728 bytes; out-of-memory texts "31.37 GiB"
    _card("rtx5090", f"{_GEFORCE} RTX 5090", 32120, 32607, (12, 0), 170, 98304, 2550, 14001, 512),
    # YOLO logs, torch 2.11 (22,693 with older drivers)
    _card("l4", "NVIDIA L4", 22563, 23034, (8, 9), 58, 49152, 2040, 6251, 192),
    # properties
    _card("l40s", "NVIDIA L40S", 45589, 46068, (8, 9), 142, 98304, 2520, 9001, 384),
    # properties, CUDA 13.0
    _card("a10g", "NVIDIA A10G", 22587, 23028, (8, 6), 80, 6144, 1710, 6251, 384),
    # YOLO log, torch 2.8
    _card("a30", "NVIDIA A30", 24164, 24576, (8, 0), 56, 24576, 1440, 1215, 3072),
    # properties
    _card("a40", "NVIDIA A40", 45416, 46068, (8, 6), 84, 6144, 1740, 7251, 384),
    # properties
    _card("a6000", "NVIDIA RTX A6000", 48676, 49140, (8, 6), 84, 6144, 1800, 8001, 384),
    # deviceQuery, 42,298,834,944 bytes, driver of CUDA 12.2 (40,441 to 40,654 elsewhere)
    _card("a100-40gb", "NVIDIA A100-SXM4-40GB", 40339, 40960, (8, 0), 108, 40960, 1410, 1215, 5120),
    # YOLO log, torch 2.7 (81,038 and 81,251 elsewhere)
    _card("a100-80gb", "NVIDIA A100-SXM4-80GB", 81153, 81920, (8, 0), 108, 40960, 1410, 1593, 5120),
    # properties, torch 2.7; the context: the H200's, which agrees with published ones (context.py)
    _card("h100", "NVIDIA H100 80GB HBM3", 81089, 81559, (9, 0), 132, 51200, 1980, 2619, 5120, 768),
    # properties
    _card("h100-pcie", "NVIDIA H100 PCIe", 81008, 81559, (9, 0), 114, 51200, 1755, 1593, 5120),
    # measured, torch 2.11: 150,109,880,320 bytes (a YOLO log: 143,156); the context: in training
    _card("h200", "NVIDIA H200", 143155.9375, 143771, (9, 0), 132, 61440, 1980, 3201, 6016, 768),
    # properties, torch 2.8 (182,642 elsewhere)
    _card("b200", "NVIDIA B200", 182631, 183359, (10, 0), 148, 129024, 1965, 3996, 8192),
)

CATALOGUE: dict[str, GPU] = {card.name: card for card in _CARDS}
"""Every card by its name."""

_MIN_BYTES = 1 << 20  # a smaller plain number is not meant as bytes: gpu=24

GENERIC = "a100-80gb"
"""Whose properties a card has of which only the memory is given; also the card that is assumed where none is named."""


def all_gpus() -> tuple[GPU, ...]:
    """Every card of the catalogue, older ones first."""
    return _CARDS


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
    if isinstance(gpu, str):
        wanted = _plain(gpu)
        for card in _CARDS:
            if wanted in (_plain(card.name), _plain(card.product)):
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


def _plain(name: str) -> str:
    return re.sub(r"^nvidia|^geforce", "", re.sub(r"^nvidia", "", re.sub(r"[\s_\-]+", "", name.lower())))


def _unknown(gpu: object, memory: int | None = None) -> UsageError:
    """What to tell of a card that can't be found, or of a size that can't be one's."""
    names = {_plain(name): name for name in CATALOGUE}
    text = gpu[:_MAX_NAME] if isinstance(gpu, str) else str(memory)
    wanted = _plain(text)
    # "a100" means one of the A100s, however close in letters "h100" may be.
    near = [name for name in names if len(wanted) > 1 and wanted in name]
    near += [name for name in difflib.get_close_matches(wanted, names, n=4, cutoff=0.5) if name not in near]
    found = "it is neither in the catalogue nor a size"
    if memory is not None:
        found = f"it would have {format_size(memory)}"
    elif near:
        found += f"; nearest are {', '.join(repr(names[name]) for name in near[:4])}"
    number = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*g?i?b?\s*", text, re.IGNORECASE)
    meant = f"Write '{number[1]} GiB' if that is meant; or name" if number and 0 < float(number[1]) <= 4096 else "Name"
    return UsageError(
        f"The GPU {shown(gpu)} was asked for",
        found,
        instead=f"{meant} one of {', '.join(CATALOGUE)}, a size such as '24 GiB', or describe it with vramkit.GPU(...)",
    )
