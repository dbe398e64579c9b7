"""The allocator's settings, and the sizes that follow from them. Knows the text of PYTORCH_CUDA_ALLOC_CONF; no state.

Every rule is that of torch's native CUDA caching allocator (c10/core/AllocatorConfig.cpp and
c10/cuda/CUDACachingAllocator.cpp, as of torch 2.14).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ..errors import UsageError, shown
from ..torch_releases import rounds_limit, steps_from_next

MIN_BLOCK = 512
SMALL_SIZE = 1 << 20
"""Largest rounded request, in bytes, that goes to the small pool; also the largest rest that stays unsplit."""
SMALL_SEGMENT = 2 << 20
MIN_LARGE_ALLOC = 10 << 20
ROUND_LARGE = 2 << 20
UNLIMITED = (1 << 63) - 1
_MIB = 1 << 20
_MAX_THREADS = 128  # that register pinned memory
_INTERVALS = 16  # of roundup_power2_divisions: 1 MiB .. 64 GiB, a power of two each

_KNOWN = (
    "large_segment_size_mb",
    "max_split_size_mb",
    "max_non_split_rounding_mb",
    "garbage_collection_threshold",
    "roundup_power2_divisions",
    "expandable_segments",
    "per_process_memory_fraction",
    "throw_on_cudamalloc_oom",
    "backend",
)
# Settings of the pinned host allocator and of how the driver is called: they change no block and no segment. Their
# values, which torch may refuse, are read by the method of `_Parser` that is named here.
_HARMLESS = {
    "pinned_use_background_threads": "switch",
    "pinned_max_round_threshold_mb": "loose_number",
    "pinned_max_cached_size_mb": "loose_number",
    "pinned_use_cuda_host_register": "switch",
    "pinned_use_hip_host_register": "switch",
    "pinned_num_register_threads": "threads",
    "pinned_reserve_segment_size_mb": "positive",
    "pinned_free_catch_all": "switch",
    "release_lock_on_cudamalloc": "switch",
    "release_lock_on_hipmalloc": "switch",
    "graph_capture_record_stream_reuse": "switch",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorConf:
    """Settings of torch's native CUDA caching allocator.

    ::

        AllocatorConf.parse("max_split_size_mb:128,roundup_power2_divisions:8")
    """

    large_segment_size: int = 20 * _MIB
    """Bytes of the segment for a large request under 10 MiB, and of a large page of an expandable segment."""
    max_split_size: int = UNLIMITED
    """Bytes; a block of at least this size is never split."""
    max_non_split_rounding: int = 20 * _MIB
    """Bytes by which such a block may exceed the request that it serves. Where a text doesn't name it, it is
    ``large_segment_size``."""
    garbage_collection_threshold: float = 0.0
    """Part of the memory limit above which old cached blocks are freed; 0: off."""
    roundup_power2_divisions: tuple[int, ...] = (0,) * _INTERVALS
    """Steps between two powers of two that requests are rounded up to, for 1 MiB, 2 MiB ... 32 GiB; 0: off."""
    expandable_segments: bool = False
    per_process_memory_fraction: float = 1.0
    """Part of the device's memory that segments may take; 1: no limit of the allocator's own."""
    throw_on_cudamalloc_oom: bool = False
    """Give up before the driver is asked, without freeing cached blocks, what would exceed the fraction."""

    @classmethod
    def parse(cls, text: str) -> AllocatorConf:
        """Settings written as in the environment variable ``PYTORCH_CUDA_ALLOC_CONF``.

        Args:
            text: ``key:value`` pairs with commas between them; spaces do not matter, and a later key overrides an
                earlier one. Empty: the defaults.

        Raises:
            UsageError: an unknown key, a value that torch would refuse, or a backend that is not simulated.
        """
        return cls().changed(text)

    def changed(self, text: str) -> AllocatorConf:
        """These settings after torch was given others at run time.

        What torch calls expandable segments, the size of a large segment, the memory fraction and whether to throw
        early stay as they are unless the text names them. All else that it doesn't name is the default again.

        Args:
            text: as of `parse`, and with its errors.
        """
        defaults = AllocatorConf()
        kept = replace(
            self,
            max_split_size=defaults.max_split_size,
            garbage_collection_threshold=defaults.garbage_collection_threshold,
            roundup_power2_divisions=defaults.roundup_power2_divisions,
        )
        return _Parser(text, kept).conf()

    @property
    def looks_at_capacity(self) -> bool:
        """Whether what is reserved can depend on the device's memory while there is enough of it."""
        return (
            bool(self.garbage_collection_threshold)
            or self.max_split_size != UNLIMITED
            or self.per_process_memory_fraction < 1
        )

    def round_size(self, size: int) -> int:
        """Bytes of the block that a request needs: a multiple of 512, or a step between powers of two."""
        if size < MIN_BLOCK:
            return MIN_BLOCK
        divisions = self.roundup_power2_divisions[min(max(size.bit_length() - 21, 0), _INTERVALS - 1)]
        if divisions > 1 and size > MIN_BLOCK * divisions:
            floor = 1 << (size.bit_length() - 1)
            if size == floor:
                return size
            step = floor // divisions
            if not step:
                return 2 * floor
            return -(-size // step) * step
        return -(-size // MIN_BLOCK) * MIN_BLOCK

    def round_sizes(self, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """`round_size` of many requests at once."""
        if any(divisions > 1 for divisions in self.roundup_power2_divisions):
            distinct, places = np.unique(sizes, return_inverse=True)
            rounded = np.array([self.round_size(size) for size in distinct.tolist()], np.int64)
            return rounded[places.reshape(sizes.shape)]
        return np.maximum(-(-sizes // MIN_BLOCK) * MIN_BLOCK, MIN_BLOCK)

    def segment_size(self, rounded: int) -> int:
        """Bytes of the segment that is made for a rounded request no cached block can serve."""
        if rounded <= SMALL_SIZE:
            return SMALL_SEGMENT
        if rounded < MIN_LARGE_ALLOC:
            return self.large_segment_size
        return -(-rounded // ROUND_LARGE) * ROUND_LARGE

    def is_small_segment(self, size: int) -> bool:
        """Whether a new segment, or newly mapped pages, belong to the small pool: large ones have 10 MiB or more."""
        return size == SMALL_SEGMENT

    def smallest_rest(self, rounded: int, *, expandable: bool) -> int:
        """Bytes that must be left over for a block to be split when it serves a rounded request."""
        if rounded <= SMALL_SIZE or expandable:
            return MIN_BLOCK
        return SMALL_SIZE + 1 if rounded < self.max_split_size else UNLIMITED

    def smallest_rests(self, rounded: npt.NDArray[np.int64], *, expandable: bool) -> npt.NDArray[np.int64]:
        """`smallest_rest` of many requests at once."""
        if expandable:
            return np.full(rounded.shape, MIN_BLOCK, np.int64)
        large = np.where(rounded < self.max_split_size, SMALL_SIZE + 1, UNLIMITED)
        return np.where(rounded <= SMALL_SIZE, MIN_BLOCK, large)


def alloc_conf_of_process() -> str:
    """The text of this process' settings, under either of the variable's two names; empty: it has none."""
    return os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or os.environ.get("PYTORCH_ALLOC_CONF") or ""


def memory_limit(fraction: float, memory: int) -> int | None:
    """Bytes that a process may have of a device's memory under a memory fraction; None: it sets no limit.

    To the nearest byte, as torch has it by now: a fraction that was computed from a limit means that limit.
    """
    return None if fraction >= 1 else int(fraction * memory + 0.5 * rounds_limit())


class _Parser:
    """Reads the text token by token, as torch's ``ConfigTokenizer`` cuts it.

    Args:
        text: what is read.
        start: the settings that hold where the text names no other.
    """

    def __init__(self, text: str, start: AllocatorConf) -> None:
        if not isinstance(text, str):
            raise UsageError(
                "Allocator settings were expected as text",
                f"got {shown(text)}",
                instead="Write them as in PYTORCH_CUDA_ALLOC_CONF, such as 'expandable_segments:True'",
            )
        self.text = text
        self.start = start
        self.tokens: list[str] = re.findall(r"[,:\[\]]|[^,:\[\]]+", re.sub(r"\s", "", text))
        self.place = 0
        self.large_segment_size = start.large_segment_size

    def conf(self) -> AllocatorConf:
        pairs = self.pairs()
        values: dict[str, Any] = {}
        # The large segment's size goes first, wherever it stands, as others are held against it.
        for key, place in sorted(pairs, key=lambda pair: pair[0] != "large_segment_size_mb"):
            self.place = place
            if key in _HARMLESS:
                getattr(self, _HARMLESS[key])(key)
            else:
                getattr(self, f"_{key}")(key, values)
        return replace(self.start, **{"max_non_split_rounding": self.large_segment_size, **values})

    def pairs(self) -> list[tuple[str, int]]:
        """The keys, each with the place of its value."""
        found = []
        while self.place < len(self.tokens):
            key = self.next("a key")
            self.expect(":")
            if key not in _KNOWN and key not in _HARMLESS:
                self.refuse(f"the key {shown(key)} is unknown", f"Use one of {', '.join(_KNOWN)}")
            found.append((key, self.place))
            self.skip_value()
            if self.place < len(self.tokens):
                self.expect(",")
        return found

    def refuse(self, found: str, instead: str, why: str = "") -> NoReturn:
        raise UsageError(f"Allocator settings were read from {shown(self.text)}", found, why, instead)

    def next(self, wanted: str) -> str:
        if self.place >= len(self.tokens):
            self.refuse(f"{wanted} is missing at the end", "Write key:value pairs with commas between them")
        self.place += 1
        return self.tokens[self.place - 1]

    def expect(self, sign: str) -> None:
        if (found := self.next(repr(sign))) != sign:
            self.refuse(
                f"{shown(found)} stands where {sign!r} belongs", "Write key:value pairs with commas between them"
            )

    def skip_value(self) -> None:
        if self.next("a value") == "[":
            while self.next("']'") != "]":
                pass

    def number(self, key: str, text: str | None = None) -> int:
        text = self.next("a number") if text is None else text
        if not re.fullmatch(r"\d+", text, re.ASCII):
            self.refuse_number(key, text)
        return self.in_64_bits(key, text)

    def loose_number(self, key: str) -> int:
        """As C++ reads it, who passes over what follows the digits. Where it matters, `number` takes no such thing."""
        text = self.next("a number")
        found = re.match(r"[+-]?\d+", text, re.ASCII)
        if found is None:
            self.refuse_number(key, text)
        return self.in_64_bits(key, found[0]) % (1 << 64)

    def in_64_bits(self, key: str, digits: str) -> int:
        number = digits.lstrip("+-").lstrip("0") or "0"  # torch takes any number of zeros, and Python no 4,301 digits
        if len(number) > 20 or int(number) >= 1 << 64:
            self.refuse_number(key, digits)
        return -int(number) if digits.startswith("-") else int(number)

    def refuse_number(self, key: str, text: str) -> NoReturn:
        self.refuse(f"{key} is {shown(text)}", f"Give {key} a whole number from 0 to 2**64 - 1")

    def threads(self, key: str) -> None:
        if (count := self.loose_number(key)).bit_count() != 1 or count > _MAX_THREADS:
            self.refuse(f"{key} is {count}", f"Give {key} a power of two from 1 to {_MAX_THREADS}")

    def positive(self, key: str) -> None:
        if not self.loose_number(key):
            self.refuse(f"{key} is 0", f"Leave {key} out, or give it 1 or more")

    def fraction(self, key: str) -> float:
        text = self.next("a number")
        if not re.fullmatch(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text, re.ASCII):
            self.refuse(f"{key} is {shown(text)}", f"Give {key} a number between 0 and 1")
        return float(text)

    def switch(self, key: str) -> bool:
        text = self.next("True or False")
        if text not in ("True", "False"):
            self.refuse(f"{key} is {shown(text)}", f"Write {key}:True or {key}:False, with a capital")
        return text == "True"

    def mebibytes(self, key: str) -> int:
        size = self.number(key) * _MIB
        least = self.large_segment_size
        if size < least:
            self.refuse(
                f"{key} is {size // _MIB}", f"Give {key} at least {least // _MIB}", "torch refuses less than a segment"
            )
        return min(size, UNLIMITED)

    def _large_segment_size_mb(self, key: str, values: dict[str, Any]) -> None:
        size = self.number(key) * _MIB
        if size <= MIN_LARGE_ALLOC:
            self.refuse(f"{key} is {size // _MIB}", f"Give {key} more than 10", "A request of 10 MiB must fit into it")
        values["large_segment_size"] = self.large_segment_size = size

    def _max_split_size_mb(self, key: str, values: dict[str, Any]) -> None:
        values["max_split_size"] = self.mebibytes(key)

    def _max_non_split_rounding_mb(self, key: str, values: dict[str, Any]) -> None:
        values["max_non_split_rounding"] = self.mebibytes(key)

    def _garbage_collection_threshold(self, key: str, values: dict[str, Any]) -> None:
        threshold = self.fraction(key)
        if not 0 < threshold < 1:
            self.refuse(f"{key} is {threshold}", f"Give {key} a number above 0 and below 1")
        values["garbage_collection_threshold"] = threshold

    def _per_process_memory_fraction(self, key: str, values: dict[str, Any]) -> None:
        fraction = self.fraction(key)
        if fraction > 1:
            self.refuse(f"{key} is {fraction}", f"Give {key} a number from 0 to 1")
        values["per_process_memory_fraction"] = fraction

    def _expandable_segments(self, key: str, values: dict[str, Any]) -> None:
        values["expandable_segments"] = self.switch(key)

    def _throw_on_cudamalloc_oom(self, key: str, values: dict[str, Any]) -> None:
        values["throw_on_cudamalloc_oom"] = self.switch(key)

    def _backend(self, key: str, values: dict[str, Any]) -> None:
        if (backend := self.next("a backend")) != "native":
            self.refuse(
                f"the backend is {shown(backend)}",
                "Leave the backend out, or write backend:native",
                "Only torch's native allocator is simulated: the driver's own gives out memory by rules of its own",
            )

    def _roundup_power2_divisions(self, key: str, values: dict[str, Any]) -> None:
        first = self.next("a number or a list")
        if first != "[":
            value = self.divisions(key, first)
            if not value:
                self.refuse(f"{key} is 0", f"Leave {key} out for no rounding", "torch takes a 0 only inside a list")
            values[key] = (value,) * _INTERVALS
            return
        steps = list(values.get(key, self.start.roundup_power2_divisions))
        last = None
        while (limit := self.next("']'")) != "]":
            self.expect(":")
            value = self.divisions(key)
            if limit == ">":
                # torch counts from the interval after the last one named, or from that one; also when none was.
                start = (last or 0) + steps_from_next()
                steps[start:] = [value] * (_INTERVALS - start)
            else:
                bound = self.number(key, limit)
                if bound & (bound - 1) or not bound:
                    self.refuse(f"{key} has the size {bound}", "Give the sizes in MB as powers of two, from 1 to 32768")
                index = min(bound.bit_length() - 1, _INTERVALS - 1)
                if last is None:
                    steps[:index] = [value] * index
                steps[index] = value
                last = index
            if self.tokens[self.place : self.place + 1] != ["]"]:
                self.expect(",")
        values[key] = tuple(steps)

    def divisions(self, key: str, text: str | None = None) -> int:
        value = self.number(key, text)
        if value & (value - 1):
            self.refuse(f"{key} has the number {value}", "Give powers of two, or 0 for no rounding")
        return value
