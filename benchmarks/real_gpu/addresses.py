"""Where cudaMalloc and cuMemAddressReserve put things, in what portions memory is taken, and whether all comes back."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable
from typing import Any

from . import driver

MIB = 1 << 20
SIZES = (1, 256, 4096, 65_536, 524_288, MIB, MIB + 1, 2 * MIB, 2 * MIB + 1, 3 * MIB, 20 * MIB, 21 * MIB, 100 * MIB)


def measure(wait: Callable[[], None], answer: Callable[[dict[str, Any]], None]) -> None:
    """Be the process: it wants the card for itself."""
    import torch

    wait()
    torch.cuda.init()
    torch.empty(0, device="cuda")
    found: dict[str, Any] = {"begin": driver.memory_info()}
    for name, run in {
        "portions": portions, "rising": one_after_another, "comes and goes": comes_and_goes, "torch": by_torch,
        "expandable": reservations, "largest": largest,
    }.items():  # fmt: skip
        try:
            found[name] = run()
        except Exception as error:  # the others are worth having
            found[name] = f"{type(error).__name__}: {error}"[:300]
        found[f"after {name}"] = driver.memory_info()
        answer(found)


def portions() -> list[Any]:
    """Of each size eight blocks: where they lie, and the free bytes after each."""
    rows = []
    for size in SIZES:
        blocks, free = [], [driver.memory_info()[0]]
        for _ in range(8):
            blocks.append(driver.malloc(size))
            free.append(driver.memory_info()[0])
        for block in blocks:
            if block is not None:
                driver.free(block)
        rows.append([size, blocks, free, driver.memory_info()[0]])
    return rows


def one_after_another() -> list[Any]:
    """Blocks that stay: of torch's segment sizes, then all given back."""
    rows = []
    for size in [2, 2, 20, 2, 20, 20, 32, 64, 2, 20, 128, 512, 2, 20, 1024, 20, 2, 2] * 3:
        rows.append([size * MIB, driver.malloc(size * MIB)])
    for _, block in rows:
        if block is not None:
            driver.free(block)
    return rows


def comes_and_goes() -> list[Any]:
    """Which gap a block takes: a fixed sequence of requests (size, address) and frees (0, address)."""
    rng, held, rows = random.Random(3), [], []
    for _ in range(400):
        if held and rng.random() < 0.45:
            block = held.pop(rng.randrange(len(held)))
            driver.free(block)
            rows.append([0, block])
        else:
            size = rng.choice([2, 2, 2, 20, 20, 20, 22, 30, 64, 100, 514]) * MIB
            block = driver.malloc(size)
            rows.append([size, block])
            if block is not None:
                held.append(block)
    for block in held:
        driver.free(block)
    return rows


def by_torch() -> list[Any]:
    """Segments of torch's own allocator: eight, every other one given back, eight again."""
    import torch

    rows, held = [], []
    for _ in range(3):
        for size in (500_000, 15 * MIB, 5 * MIB, 40 * MIB):
            for _ in range(8):
                held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
                rows.append([size, held[-1].data_ptr()])
        del held[::2]
        torch.cuda.empty_cache()
        rows.append([0, 0])
    held.clear()
    torch.cuda.empty_cache()
    return rows


class _Properties(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int), ("handles", ctypes.c_int), ("location", ctypes.c_int), ("device", ctypes.c_int),
        ("metadata", ctypes.c_void_p), ("flags", ctypes.c_ubyte * 8), ("more", ctypes.c_ubyte * 64),
    ]  # fmt: skip


def reservations() -> dict[str, Any]:
    """Granularities of the driver's virtual memory management, and where it reserves addresses."""
    cuda = ctypes.CDLL("libcuda.so.1")
    wanted, size = _Properties(type=1, location=1, device=0), ctypes.c_size_t()
    granularities = []
    for flag in (0, 1):
        status = cuda.cuMemGetAllocationGranularity(ctypes.byref(size), ctypes.byref(wanted), flag)
        granularities.append([status, size.value])
    rows = []
    for gib in (1, 157, 157, 1, 157):
        address = ctypes.c_uint64()
        length, none = ctypes.c_size_t(gib << 30), ctypes.c_ulonglong(0)
        status = cuda.cuMemAddressReserve(ctypes.byref(address), length, ctypes.c_size_t(0), none, none)
        rows.append([status, gib << 30, address.value])
    for status, length, where in rows:
        if status == 0:
            cuda.cuMemAddressFree(ctypes.c_uint64(where), ctypes.c_size_t(length))
    return {"granularities": granularities, "reserved": rows}


def largest() -> dict[str, Any]:
    """The largest block that can be had, beside what is called free; and what small blocks get of the rest."""
    free, total = driver.memory_info()
    below, block = 0, None
    while block is None and below < 256:
        block = driver.malloc(free // (2 * MIB) * 2 * MIB - 2 * MIB * below)
        below += 1
    left = driver.memory_info()[0]
    if block is not None:
        driver.free(block)
    big = driver.malloc(free - 512 * MIB)
    small = []
    while big is not None and len(small) < 60 and (found := driver.malloc(20 * MIB)) is not None:
        small.append(found)
    rest = driver.memory_info()[0]
    twos = []
    while big is not None and len(twos) < 60 and (found := driver.malloc(2 * MIB)) is not None:
        twos.append(found)
    end = driver.memory_info()[0]
    for each in (*small, *twos, *([big] if big else [])):
        driver.free(each)
    return {
        "free": free, "total": total, "less 2 MiB": below - 1, "left": left, "of 20 MiB": len(small),
        "left by them": rest, "of 2 MiB": len(twos), "left at the end": end,
    }  # fmt: skip
