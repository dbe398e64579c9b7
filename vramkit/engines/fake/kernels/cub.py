"""What CUB's algorithms take for their own work: radix sorts and scans. Knows CUB's tuning tables; no operator.

As in CCCL 3.0, which comes with CUDA 13.0 (``cub/device/dispatch``), where torch counts positions in 64 bits. CUB takes
the tuning of the newest architecture up to the card's that torch was built for: 7.5, 8.0, 8.6, 9.0, 10.0 and 12.0.
"""

from __future__ import annotations

from ....gpus import GPU
from .arithmetic import ceil_div, round_up

_PART = 256
"""Several parts of one allocation begin at multiples of it."""
_DIGITS = 256
_MAX_AT_ONCE = (1 << 28) - 1


def _together(*sizes: int) -> int:
    total = sum(round_up(size, _PART) for size in sizes)
    return total + _PART - 1 if total else 1


def _tile(threads: int, items: int, width: int) -> int:
    """Elements that a block of threads takes: the tables' numbers are for four bytes; of wider ones it takes fewer."""
    items = max(1, items * 4 // max(4, width))
    return items * min(threads, round_up(ceil_div(49_152, width * items), 32))


# bytes of key, of value -> threads of a block, items of a thread
_NARROW_KEYS_90 = {
    (1, 0): (512, 19), (1, 1): (448, 16), (1, 2): (512, 14), (1, 4): (512, 14), (1, 8): (384, 18),
    (2, 0): (512, 19), (2, 1): (384, 16), (2, 2): (448, 16), (2, 4): (512, 12), (2, 8): (512, 23),
}  # fmt: skip
_NARROW_KEYS_100 = {
    (1, 0): (512, 19), (1, 1): (384, 20), (1, 2): (256, 22), (1, 4): (384, 15), (1, 8): (384, 18),
    (2, 0): (384, 20), (2, 1): (384, 15), (2, 2): (576, 15), (2, 4): (512, 18), (2, 8): (512, 23),
}  # fmt: skip


def _sweeping(gpu: GPU, key: int, value: int) -> tuple[int, int]:
    """Threads and items of a sort in one sweep a digit."""
    major = gpu.capability[0]
    if major < 8:
        return 256, 46 if key == value == 4 else 23
    if major == 8:
        return 384, 17 if key == 4 and value else 21
    if key < 4:
        return (_NARROW_KEYS_90 if major == 9 else _NARROW_KEYS_100)[key, value]
    if key == 4:
        return 384, 19 if not value else 17 if value < 8 else 29
    return 384, 30 if value < 8 else 24


def radix_sort(gpu: GPU, count: int, key: int, value: int = 0, bits: int | None = None) -> int:
    """Bytes that a sort takes for its own work.

    Cards before 9.0 sort keys of one and two bytes in another way, for which CUB asks how many blocks of threads the
    card holds at a time: assumes that registers set no limit.

    Args:
        gpu: the card.
        count: how many keys.
        key: bytes of one.
        value: bytes of what goes with a key; 0: nothing does.
        bits: of a key that decide; None: all.
    """
    widest = max(key, value)
    if count <= _tile(256, 19, widest):
        return 1
    if gpu.capability[0] < 9 and key < 4:
        digits, threads = (1 << 7, 256) if key == 2 else (1 << 5, 128)
        blocks = 5 * gpu.multiprocessors * (gpu.threads_per_multiprocessor // threads)
        return _together(8 * (blocks * digits + _tile(512, 23, 8)), count * key, count * value)
    tile = _tile(*_sweeping(gpu, key, value), widest)
    portion = _MAX_AT_ONCE // tile * tile
    passes = ceil_div(8 * key if bits is None else bits, 8)
    portions = ceil_div(count, portion)
    tiles = ceil_div(min(count, portion), tile)
    copies = (count * key, count * value) if passes > 1 else (0, 0)
    return _together(8 * portions * passes * _DIGITS, 4 * tiles * _DIGITS, *copies, 4 * portions * passes)


def segmented_sort(count: int, key: int, value: int) -> int:
    """Bytes that a sort of many segments takes."""
    return _together(count * key, count * value)


# bytes of a number -> how many of them a block of threads takes
_SCANS = {2: 3840, 4: 1920, 8: 896}
# the same for each generation of cards: 7, 8, 9 and above
_SCANS_BY_KEY = {4: (2304, 3840, 4032), 8: (2304, 2240, 2464)}
_UNIQUES = {4: (704, 2816, 7040), 8: (320, 1344, 4864)}
_SELECTED = (640, 2304, 4224)
_UNIQUES_ALONE = {4: (1280, 4608, 6528), 8: (640, 1920, 4224)}


def _generation(gpu: GPU) -> int:
    return min(max(gpu.capability[0], 7), 9) - 7


def scan(count: int, width: int) -> int:
    """Bytes that a running sum takes: how far each tile is, for a warp of them before the first too.

    Args:
        count: how many numbers.
        width: bytes of one; of two, those of half precision, which are no numbers to CUB.
    """
    tiles = ceil_div(count, _SCANS.get(width, 448)) + 32
    if width == 2:
        return _together(4 * tiles, 2 * tiles, 2 * tiles, 1)
    return _together((8 if width == 4 else max(16, 2 * width)) * tiles, 1)


def scan_by_key(gpu: GPU, count: int, width: int) -> int:
    """Bytes that running sums take which begin anew with each key, which has as many bytes as a number."""
    tiles = ceil_div(count, _SCANS_BY_KEY[width][_generation(gpu)])
    return _together(16 * (tiles + 32), width * tiles)


def unique(gpu: GPU, count: int, width: int, *, alone: bool = False) -> int:
    """Bytes that it takes to find the first of each run of equal keys.

    Args:
        gpu: the card.
        count: how many keys.
        width: bytes of one.
        alone: nothing goes with a key.
    """
    tile = (_UNIQUES_ALONE if alone else _UNIQUES)[width][_of_selections(gpu)]
    return _together((8 if alone else 16) * (ceil_div(count, tile) + 32), 1)


def selected(gpu: GPU, count: int) -> tuple[int, int]:
    """Bytes that it takes to find what is true: to count it, and to say where it is."""
    blocks = 5 * gpu.multiprocessors * (gpu.threads_per_multiprocessor // 256)
    counting = 1 if count <= 4096 else _together(4 * blocks)
    return counting, _together(8 * (ceil_div(count, _SELECTED[_of_selections(gpu)]) + 32), 1)


def _of_selections(gpu: GPU) -> int:
    return 0 if gpu.capability in ((8, 6), (8, 9)) else _generation(gpu)
