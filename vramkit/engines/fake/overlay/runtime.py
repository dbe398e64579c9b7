"""``torch.cuda`` and ``torch.accelerator`` of a device that is none: it is idle, and has one card's properties.

Knows their functions' names and what they give; no tensors, and no memory, of which it says nothing is in use.
"""

from __future__ import annotations

import types
from collections import OrderedDict
from contextlib import ExitStack, nullcontext
from typing import Any

import torch

from ....gpus import GPU
from .devices import CUDA
from .patches import put


class _Idle:
    """A stream or an event of a device on which everything is done at once."""

    cuda_stream = device_index = 0
    device = CUDA

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def _nothing(self, *args: object, **kwargs: object) -> None:
        pass

    synchronize = wait = wait_event = wait_stream = record = _nothing

    def record_event(self, event: Any = None) -> Any:
        """An event, as `torch.cuda.Stream.record_event` gives one."""
        return _Idle() if event is None else event

    def query(self) -> bool:
        """All is done."""
        return True

    def is_capturing(self) -> bool:
        """Nothing records a graph."""
        return False

    def elapsed_time(self, other: object) -> float:
        """Milliseconds."""
        return 0.0


def install(stack: ExitStack, gpu: GPU) -> None:
    """Replace the functions until the stack closes."""
    idle = _Idle()
    properties = types.SimpleNamespace(
        name=gpu.product,
        major=gpu.capability[0],
        minor=gpu.capability[1],
        total_memory=gpu.memory,
        multi_processor_count=gpu.multiprocessors,
        L2_cache_size=gpu.l2_cache,
        warp_size=32,
    )
    answers: dict[str, object] = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "get_device_name": gpu.product,
        "get_device_capability": gpu.capability,
        "get_device_properties": properties,
        "is_bf16_supported": True,  # torch counts what is emulated
        "mem_get_info": (gpu.memory - gpu.context, gpu.memory),
        "current_stream": idle,
        "default_stream": idle,
        "memory_stats": OrderedDict(),
        "initial_seed": 0,
        "is_current_stream_capturing": False,
    }
    answers.update(
        dict.fromkeys(
            (
                "_lazy_init", "init", "set_device", "synchronize", "empty_cache", "ipc_collect", "manual_seed", "seed",
                "manual_seed_all", "seed_all", "set_rng_state", "set_rng_state_all", "reset_peak_memory_stats",
                "reset_accumulated_memory_stats", "reset_max_memory_allocated", "reset_max_memory_cached", "set_stream",
                "set_per_process_memory_fraction",
            )
        )
    )  # fmt: skip
    accelerator: dict[str, object] = {
        "is_available": True,
        "device_count": 1,
        "current_accelerator": torch.device("cuda"),
        "current_device_index": 0,
        "current_stream": idle,
        **dict.fromkeys(("set_device_index", "set_stream", "synchronize")),
    }
    for module, values in ((torch.cuda, answers), (torch.accelerator, accelerator)):
        for name, value in values.items():
            put(stack, module, name, lambda *args, _value=value, **kwargs: _value)
    put(stack, torch.cuda.memory, "memory_stats", torch.cuda.memory_stats)
    put(stack, torch.cuda, "_initialized", True)  # checkpoints ask for it
    for module in (torch.cuda, torch.cuda.random):
        put(stack, module, "_lazy_call", lambda call, **kwargs: None)
    put(stack, torch.cuda, "get_rng_state", lambda device="cuda": torch.zeros(16, dtype=torch.uint8, device="cpu"))
    put(stack, torch.cuda, "get_rng_state_all", lambda: [torch.cuda.get_rng_state()])
    put(stack, torch.cuda, "stream", lambda stream: nullcontext(stream))
    put(stack, torch.cuda, "Stream", _Idle)
    put(stack, torch.cuda, "Event", _Idle)
    ranges = types.SimpleNamespace(
        rangePushA=lambda message: 0, rangePop=lambda: 0, rangeStartA=lambda message: 0, rangeEnd=lambda number: None,
        markA=lambda message: None,
    )  # fmt: skip
    put(stack, torch.cuda.nvtx, "_nvtx", ranges)
    put(stack, torch, "Generator", _Generator)


class _AnyGenerator(type(torch._C.Generator)):  # type: ignore[misc] # whose class differs between versions of torch
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch._C.Generator)


class _Generator(torch._C.Generator, metaclass=_AnyGenerator):
    """``torch.Generator``, which only a device can have of its own: the host's instead."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return torch._C.Generator("cpu")
