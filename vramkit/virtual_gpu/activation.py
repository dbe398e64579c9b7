"""Switches the virtual GPU on. Knows how it gets under torch, how children inherit it, and how a process ends cleanly;
what a device is, the catalogue and the C library know.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import time
from collections.abc import MutableMapping
from dataclasses import replace
from pathlib import Path

from .. import gpus
from ..errors import DeviceError, UsageError
from ..gpus import GPU
from ..sizes import parse_size
from .build import ALIASES, LIBRARY, build, find_torch
from .cache import cache_folder
from .handle import AddressOrder, Settings, Values, VirtualGPU
from .values.library import build_values

ENVIRONMENT = "VRAMKIT_VIRTUAL_GPU"
"""The variable by which children get the settings."""

RUN_ENVIRONMENT = "VRAMKIT_RUN"
"""The variable by which the processes that a measured script starts are told to measure themselves."""

COMPILERS_VARIABLES = (
    "TRITON_LIBCUDA_PATH",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "TORCH_COMPILE_CACHE_KEY_TAG",
    "TORCHINDUCTOR_COMPILE_THREADS",
)
"""What ``torch.compile`` and Triton are told, in a process with a virtual GPU and in all that it starts."""

COPY_LIMIT = 1 << 20
"""Bytes of the largest copy to a device that is made unless another limit is given."""

_active: VirtualGPU | None = None


def activate(
    gpu: str | int | GPU = gpus.GENERIC,
    *,
    count: int = 1,
    address_order: AddressOrder = "falling",
    values: Values = "small",
    copy_limit: int | str | None = None,
    children: bool = False,
) -> VirtualGPU:
    """Put a virtual GPU under the torch that is about to be imported.

    ::

        gpu = vramkit.virtual_gpu.activate("rtx4090", count=2)
        import torch
        torch.cuda.get_device_name(1)                      # 'NVIDIA GeForce RTX 4090'

    The first call on a machine compiles a C library, in about 2 s, into ``~/.cache/vramkit``. Activating again with the
    same settings returns the same handle. It can't be switched off: torch asks for its devices once. The environment is
    left alone, but for what ``torch.compile`` reads there: ``TRITON_LIBCUDA_PATH``, by which it finds the driver, and
    where and under which key it keeps what it has compiled (``TORCHINDUCTOR_CACHE_DIR``, ``TRITON_CACHE_DIR``,
    ``TORCH_COMPILE_CACHE_KEY_TAG``), which become virtual GPUs' own. Up to torch 2.13 ``TORCHINDUCTOR_COMPILE_THREADS``
    becomes 1 without ``children``: it has to compile in this process, as its workers would look for a GPU.

    *Child processes.* A forked child has it, as far as CUDA survives a fork (torch refuses to start CUDA in one). A
    spawned child or a subprocess is a new process: it calls ``activate`` itself before it imports torch, which a call
    at the top of the main script does for ``multiprocessing``; or it inherits the virtual GPU through its environment,
    with ``children=True``. A ``DataLoader``'s workers need neither: they work on the CPU.

    Args:
        gpu: a name of the catalogue ("a100-40gb"), a size ("24 GiB": a card with that memory, otherwise like the A100),
            bytes, or a ``vramkit.GPU``.
        count: devices, 1 to 16, all alike. ``CUDA_VISIBLE_DEVICES`` chooses among them.
        address_order: where new segments go. Among blocks of one size torch 2.11 and older prefer the lowest address,
            so there the order can, rarely, change what is reserved; torch 2.14 prefers the oldest segment.
        values: which values are computed on the devices, by the CPU's kernels. "small": those of small tensors, on
            which sizes and control flow depend (it needs a C++ compiler at the first use, and goes without where there
            is none).
            "all": every one, so that programs train for real, at the CPU's speed. "none": kernels write nothing. No
            allocation differs between them, but where its size depends on values.
        copy_limit: bytes; copies to a device up to this size move data, larger ones leave what was there. None: 1 MiB,
            and 0 with ``values="none"``: no kernel would ever overwrite them, and another tensor in that place would
            read them. With ``values="all"`` every copy is made.
        children: let every process that this one starts have the virtual GPU too, whatever it runs: LD_PRELOAD and
            ``VRAMKIT_VIRTUAL_GPU`` are set in ``os.environ``. It computes values, and ends cleanly, if it can import
            vramkit.

    Returns:
        The handle, for changing capacities and asking what is used.

    Raises:
        UsageError: an unknown GPU, torch is imported already, or another virtual GPU is active.
        DeviceError: it can't be built or doesn't run here; the text says what is missing.
    """
    global _active
    if copy_limit is None:
        copy_limit = 0 if values == "none" else COPY_LIMIT
    settings = Settings(
        gpu=gpus.find(gpu), count=count, address_order=address_order, values=values, copy_limit=parse_size(copy_limit)
    )
    active = current()
    if active is not None and active.settings != settings:
        raise UsageError(
            f"A virtual GPU was asked for: {_describe(settings)}",
            f"one is active already: {_describe(active.settings)}",
            "A process keeps the devices that it started with (under `vramkit run`, those of its --gpu)",
            "Use vramkit.virtual_gpu.current(), or start another process",
        )
    if active is None:
        if "torch" in sys.modules:
            raise UsageError(
                "A virtual GPU was asked for",
                "torch is imported already",
                "torch binds to the CUDA libraries while it is imported",
                "Call vramkit.virtual_gpu.activate() before the first `import torch`,"
                " or start the script with `vramkit run --gpu NAME script.py`",
            )
        folder = build(find_torch())
        compute = None if values == "none" else _values_library(values)
        active = VirtualGPU(_load(folder), settings)
        active.configure(settings)
        _tell_compilers(os.environ, folder, children)
        _arm(active, compute)
    if children:
        _bequeath(os.environ, active.settings, build(find_torch()))
    return active


def environment_with(gpu: GPU) -> dict[str, str]:
    """This process's environment, so that a process which is started with it has a virtual GPU; as ``children=True``.

    Args:
        gpu: the card.

    Raises:
        UsageError, DeviceError: as of `activate`.
    """
    environment = {name: value for name, value in os.environ.items() if name != RUN_ENVIRONMENT}
    folder = build(find_torch())
    settings = Settings(gpu=gpu, count=1, address_order="falling", values="small", copy_limit=COPY_LIMIT)
    _tell_compilers(environment, folder, children=True)
    _bequeath(environment, settings, folder)
    return environment


def _tell_compilers(environment: MutableMapping[str, str], folder: Path, children: bool) -> None:
    """Set `COMPILERS_VARIABLES`.

    Inductor keeps which variants of a kernel were fastest, by the card's properties, and a virtual card has those of a
    real one: what was chosen here, where nothing takes time, must not be found there, whatever the user's own cache is.
    The tag is part of its keys, also of those in a folder that a script sets later, or on a server.
    """
    # Triton asks ldconfig where the driver is, unless it is told.
    environment.setdefault("TRITON_LIBCUDA_PATH", str(folder))
    for variable, name in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
        environment[variable] = str(cache_folder() / "compiled" / name)
    environment["TORCH_COMPILE_CACHE_KEY_TAG"] = "virtual GPU"
    if not children and find_torch().release < (2, 14):
        # The workers that compile are processes without this GPU, and up to torch 2.13 they look for one.
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = "1"


def _load(folder: Path) -> ctypes.CDLL:
    # First in the loader's global scope: torch's references to CUDA functions then find ours, the real libraries
    # (which torch still loads) come after. The aliases answer to the names that are opened at run time.
    try:
        library, *_ = [ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL) for name in (LIBRARY, *ALIASES)]
    except OSError as error:
        raise DeviceError(
            "The virtual GPU was to be loaded",
            str(error),
            "The build is damaged, or lies on a disk from which no program may run",
            f"Remove {folder}, or set XDG_CACHE_HOME to a folder on another disk",
        ) from error
    return library


def current() -> VirtualGPU | None:
    """The virtual GPU of this process, also if a parent process gave it; None if there is none.

    Raises:
        DeviceError: the parent's settings can't be read.
    """
    if _active is None and (text := os.environ.get(ENVIRONMENT)) is not None:
        library = ctypes.CDLL(None)
        if hasattr(library, "vgpu_configure"):  # preloaded: the environment reached the loader too
            try:
                settings = Settings.from_text(text)
            except (KeyError, ValueError) as error:
                raise DeviceError(
                    f"The virtual GPU that {ENVIRONMENT} describes was asked for",
                    f"the variable is {text[:200]!r}",
                    "Only what vramkit.virtual_gpu.activate(..., children=True) wrote can be read",
                    "Unset it, together with LD_PRELOAD",
                ) from error
            compute = None if settings.values == "none" else _values_library(settings.values)
            _arm(VirtualGPU(library, settings), compute)
    return _active


def exchange(gpu: GPU, count: int = 1) -> None:
    """Make the devices of this process others, of another card. For a fork of a process that has torch and no CUDA.

    To be called before CUDA is asked for anything: library and torch keep what they read first.
    """
    handle = current()
    assert handle is not None
    handle.configure(replace(handle.settings, gpu=gpu, count=count))


def can_compute_values() -> bool:
    """Whether values can be computed on a virtual GPU here; compiles what does it, if it is not there."""
    try:
        build_values(find_torch())
    except DeviceError:
        return False
    return True


def is_active() -> bool:
    """Whether torch runs, or will run, on a virtual GPU in this process."""
    return current() is not None


def _values_library(values: Values) -> Path | None:
    """What computes values; None: it can't be built here, and nobody asked for it."""
    try:
        return build_values(find_torch())
    except DeviceError:
        if values == "all":
            raise
        return None


def _arm(handle: VirtualGPU, compute: Path | None) -> None:
    global _active
    _active = handle
    if compute is not None:
        handle.compute_values(compute)
    atexit.register(let_autograd_rest)


def _describe(settings: Settings) -> str:
    more = f", address_order={settings.address_order!r}" * (settings.address_order != "falling")
    more += f", values={settings.values!r}" * (settings.values != "small")
    more += f", copy_limit={settings.copy_limit}"
    return f"{settings.count} x {settings.gpu.product}{more}"


def _bequeath(environment: MutableMapping[str, str], settings: Settings, folder: Path) -> None:
    if any(sign in str(folder) for sign in " :"):  # LD_PRELOAD is split at both, and knows no quotes
        raise UsageError(
            "A virtual GPU for child processes was asked for",
            f"the cache folder {folder} has a space or a colon in its name",
            "The loader can't be told of such a path",
            "Set XDG_CACHE_HOME to another folder",
        )
    ours = [str(folder / name) for name in (LIBRARY, *ALIASES)]
    others = [path for path in environment.get("LD_PRELOAD", "").split(":") if path and path not in ours]
    environment["LD_PRELOAD"] = ":".join([*ours, *others])
    environment[ENVIRONMENT] = settings.to_text()


def let_autograd_rest(limit: float = 2.0) -> None:
    """Wait until torch's autograd threads sleep.

    A program that ends within a millisecond of ``backward()`` can catch the device's autograd thread while it drops the
    last graph, for which it wants the interpreter's lock; Python then ends that thread in a place where C++ may not be
    left, and the process aborts ("terminate called without an active exception"; 13 of 20 runs). It is torch's race,
    not ours: a real GPU is slow enough to hide it. So give the threads the lock until each of them has been asleep,
    without having run in between, for three looks in a row; a thread that merely waits for the processor is not asleep.

    Args:
        limit: seconds after which to give up.
    """
    seen, calm, deadline = None, 0, time.monotonic() + limit
    while calm < 3 and time.monotonic() < deadline:
        threads = _autograd_threads()
        if not threads:
            return
        asleep = all(state == "S" for state, _ in threads.values())
        calm = calm + 1 if asleep and threads == seen else 0
        seen = threads
        time.sleep(0.005)  # hands the lock over


def _autograd_threads() -> dict[str, tuple[str, str]]:
    """Of each autograd thread its state, and how often it was put to sleep so far."""
    threads = {}
    for task in Path("/proc/self/task").glob("*"):
        try:
            if task.joinpath("comm").read_text().startswith("pt_autograd"):
                lines = task.joinpath("status").read_text().splitlines()
                status = dict(line.split(":", 1) for line in lines)
                threads[task.name] = (status["State"].split()[0], status["voluntary_ctxt_switches"].strip())
        except OSError:  # the thread has just ended
            continue
    return threads
