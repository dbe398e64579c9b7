"""The handle of an active virtual GPU, and the text its C library is configured with. Knows the library's own calls;
doesn't load or build it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, cast, get_args

from ..errors import UsageError, shown
from ..gpus import GPU, MAX_MEMORY
from ..sizes import format_size, parse_size
from .values.hook import ComputedValues

AddressOrder = Literal["falling", "rising"]
"""Where new device memory goes: below what is there (as drivers mostly do), or above it."""

Values = Literal["none", "small", "all"]
"""Which values are computed on a virtual device: none, those of small tensors, or all of them."""

MAX_DEVICES = 16
_TELL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
_ALL_MEMORY = 16 << 40  # the stretch of addresses that all devices share


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a virtual GPU is activated with."""

    gpu: GPU
    count: int
    address_order: AddressOrder
    copy_limit: int
    values: Values

    def __post_init__(self) -> None:
        if not isinstance(self.count, int) or not 1 <= self.count <= MAX_DEVICES:
            raise UsageError(
                f"{shown(self.count)} virtual GPUs were asked for", instead=f"Give a count of 1 to {MAX_DEVICES}"
            )
        if self.address_order not in ("falling", "rising"):
            raise UsageError(
                f"The address order {self.address_order!r} was asked for", instead="Give 'falling' or 'rising'"
            )
        if self.values not in get_args(Values):
            raise UsageError(
                f"A virtual GPU with values={self.values!r} was asked for", instead="Give 'none', 'small' or 'all'"
            )
        if self.gpu.memory > self.max_memory:
            raise UsageError(
                f"A virtual GPU with {self.gpu.memory} bytes was asked for",
                instead=f"The maximum is {format_size(self.max_memory)}"
                + f", with {self.count} of them" * (self.count > 1),
            )

    @property
    def max_memory(self) -> int:
        """Bytes: the maximum of each of so many devices."""
        return min(MAX_MEMORY, _ALL_MEMORY // self.count)

    def to_text(self) -> str:
        """The text that the C library reads; also the environment variable by which children get it."""
        gpu = self.gpu
        values = {
            "count": self.count,
            "rising": int(self.address_order == "rising"),
            "copy_limit": self.copy_limit,
            "values": self.values,
            "major": gpu.capability[0],
            "minor": gpu.capability[1],
            **{field.name: getattr(gpu, field.name) for field in fields(gpu) if field.name != "capability"},
            "threads_per_multiprocessor": gpu.threads_per_multiprocessor,
            "blocks_per_multiprocessor": gpu.blocks_per_multiprocessor,
            "shared_memory_per_multiprocessor": gpu.shared_memory_per_multiprocessor,
            "shared_memory_per_block": gpu.shared_memory_per_block,
        }
        return ";".join(f"{key}={value}" for key, value in values.items())

    @staticmethod
    def from_text(text: str) -> Settings:
        """The settings of a parent process. Raises: ValueError or KeyError on a text that ``to_text`` didn't write."""
        values = dict(pair.split("=", 1) for pair in text.split(";"))
        numbers = ("memory", "multiprocessors", "board_memory", "l2_cache", "clock_mhz", "memory_clock_mhz")
        gpu = GPU(
            name=values["name"],
            product=values["product"],
            capability=(int(values["major"]), int(values["minor"])),
            **{name: int(values[name]) for name in (*numbers, "bus_width", "context")},
        )
        return Settings(
            gpu=gpu,
            count=int(values["count"]),
            address_order="rising" if values["rising"] == "1" else "falling",
            copy_limit=int(values["copy_limit"]),
            values=cast(Values, values["values"]),
        )


class VirtualGPU:
    """The virtual GPUs of this process. ``activate`` makes it.

    Devices are numbered as the machine does, whatever ``CUDA_VISIBLE_DEVICES`` says.
    """

    __slots__ = ("_library", "_settings", "_tell", "_told", "values")

    def __init__(self, library: ctypes.CDLL, settings: Settings) -> None:
        library.vgpu_configure.argtypes = [ctypes.c_char_p]
        library.vgpu_configure.restype = None
        library.vgpu_set_memory.argtypes = [ctypes.c_int, ctypes.c_size_t]
        library.vgpu_set_memory.restype = None
        library.vgpu_refuse.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t]
        library.vgpu_refuse.restype = None
        library.vgpu_refusals.argtypes = [ctypes.c_int]
        library.vgpu_refusals.restype = ctypes.c_size_t
        library.vgpu_memory.argtypes = [ctypes.c_int]
        library.vgpu_memory.restype = ctypes.c_size_t
        library.vgpu_used.argtypes = [ctypes.c_int]
        library.vgpu_used.restype = ctypes.c_size_t
        library.vgpu_launches.argtypes = []
        library.vgpu_launches.restype = ctypes.c_ulonglong
        library.vgpu_plans_timed.argtypes = []
        library.vgpu_plans_timed.restype = ctypes.c_ulonglong
        library.vgpu_communicators.argtypes = []
        library.vgpu_communicators.restype = ctypes.c_uint
        library.vgpu_tell_split.argtypes = [ctypes.c_int]
        library.vgpu_tell_split.restype = None
        library.vgpu_hold_watchdog.argtypes = [ctypes.c_int]
        library.vgpu_hold_watchdog.restype = None
        library.vgpu_on_exchange.argtypes = [_TELL]
        library.vgpu_on_exchange.restype = None
        library.vgpu_limits_met.argtypes = []
        library.vgpu_limits_met.restype = ctypes.c_uint
        library.vgpu_limit.argtypes = [ctypes.c_uint]
        library.vgpu_limit.restype = ctypes.c_char_p
        self._library = library
        self._settings = settings
        self._tell: Callable[[int, int], object] | None = None
        self._told = _TELL(self._pass_on)  # one for ever: C may be about to call it at any time
        self.values: ComputedValues | None = None
        """What is computed on its devices; None: nothing."""

    def compute_values(self, library: Path) -> None:
        """Let values be computed, by the library that was built for it, from the first use of CUDA on. Internal."""
        everything = self._settings.values == "all"
        self.values = ComputedValues(
            self._library, library, everything=everything, copy_limit=self._settings.copy_limit
        )

    def configure(self, settings: Settings) -> None:
        """Tell the library what its devices are; it listens until CUDA is first asked for anything. Internal."""
        self._library.vgpu_configure(settings.to_text().encode())
        self._settings = settings

    @property
    def settings(self) -> Settings:
        """What it was activated with."""
        return self._settings

    @property
    def gpu(self) -> GPU:
        """The card that every device is."""
        return self._settings.gpu

    @property
    def count(self) -> int:
        """How many devices there are."""
        return self._settings.count

    @property
    def launches(self) -> int:
        """Kernels launched so far in this process, cuDNN's plans included; products of cuBLAS are not counted."""
        return int(self._library.vgpu_launches())

    @property
    def plans_timed(self) -> int:
        """How often cuDNN's plans were timed: a search for the fastest one (``cudnn.benchmark``) times each of them."""
        return int(self._library.vgpu_plans_timed())

    @property
    def communicators(self) -> int:
        """How many communicators of several ranks NCCL's stand-in made so far."""
        return int(self._library.vgpu_communicators())

    def tell_split(self, ranks: int) -> None:
        """Say how many ranks the next communicator has that this thread makes by a split; 0: nobody knows. Internal."""
        self._library.vgpu_tell_split(ranks)

    def hold_watchdog(self, held: bool) -> None:
        """Let no collective be done for NCCL's watchdog, but for those of more than 30 s ago. Internal."""
        self._library.vgpu_hold_watchdog(held)

    def tell_exchanges(self, tell: Callable[[int, int], object] | None) -> None:
        """Say where each collective of several ranks reads and writes, in the thread that calls it. Internal.

        Args:
            tell: takes two addresses, 0 for none; None: nobody asks any more.
        """
        self._tell = tell
        self._library.vgpu_on_exchange(_TELL() if tell is None else self._told)

    def _pass_on(self, read: int | None, written: int | None) -> None:
        tell = self._tell
        if tell is not None:  # a thread may be on its way here when nobody asks any more
            tell(read or 0, written or 0)

    @property
    def limits_met(self) -> int:
        """How often a function was called that a virtual GPU can't answer. Mostly the caller does without it."""
        return int(self._library.vgpu_limits_met())

    def limits_since(self, met: int) -> list[str]:
        """The functions that were called so, newest first, each once; of many calls, those of the last 64.

        Args:
            met: what `limits_met` was before.
        """
        names = [self._library.vgpu_limit(number) for number in range(max(met, self.limits_met - 64), self.limits_met)]
        return [*dict.fromkeys(name.decode() for name in reversed(names) if name is not None)]

    def memory(self, device: int = 0) -> int:
        """The capacity of a device, bytes."""
        return int(self._library.vgpu_memory(self._number(device)))

    def set_memory(self, size: int | str | None, device: int = 0) -> None:
        """Change a device's capacity while the program runs, for instance to provoke an out-of-memory error.

        What is allocated stays, even if it is more than the new capacity; the next allocation is measured against it.
        torch keeps the ``total_memory`` that it saw when it first asked for the device's properties, and memory
        fractions are of that; ``torch.cuda.mem_get_info`` asks anew.

        Args:
            size: bytes, or a text such as ``"8 GiB"``; None: the card's own memory again.
            device: which device.

        Raises:
            UsageError: no size, no such device, or 0 bytes.
        """
        number = self._number(device)
        capacity = 0 if size is None else parse_size(size)
        maximum = self.settings.max_memory
        if size is not None and not 0 < capacity <= maximum:
            raise UsageError(
                f"A virtual GPU with {format_size(capacity)} was asked for",
                instead=f"Give a size of 1 B to {format_size(maximum)}",
            )
        self._library.vgpu_set_memory(number, capacity)

    def refuse(self, *, after: int, times: int = 2, device: int = 0) -> None:
        """Let some requests for device memory fail, to test what a program does then.

        Args:
            after: how many requests from now on are served as always. One is what torch's allocator asks the driver
                for: a segment, or pages of an expandable one; most of its own blocks come from its cache.
            times: how many fail after that. torch asks twice before it raises an out-of-memory error: the second time
                when it has given its cache back. 0: none, from now on.
            device: which device.
        """
        self._library.vgpu_refuse(self._number(device), after, times)

    def refusals(self, device: int = 0) -> int:
        """How many of the failures that `refuse` ordered are still to come."""
        return int(self._library.vgpu_refusals(self._number(device)))

    def used(self, device: int = 0) -> int:
        """Bytes of a device that are handed out: torch's segments, without the CUDA context."""
        return int(self._library.vgpu_used(self._number(device)))

    def _number(self, device: int) -> int:
        if not isinstance(device, int) or not 0 <= device < self.count:
            raise UsageError(f"Device {shown(device)} was asked for", f"there are {self.count}, numbered from 0")
        return device

    def __repr__(self) -> str:
        many = f", count={self.count}" if self.count > 1 else ""
        return f"VirtualGPU({self.gpu.name!r}, {format_size(self.gpu.memory)}{many})"
