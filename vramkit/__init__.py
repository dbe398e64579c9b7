"""Where a PyTorch training step's GPU memory goes, to the byte.

``import vramkit`` loads neither torch nor numpy: every name is imported when it is first used, so that the virtual
GPU can be switched on before torch is there.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Action": "events",
    "Category": "events",
    "Phase": "events",
    "Tape": "events",
    "Breakdown": "breakdown",
    "Timeline": "timeline",
    "ModulePhase": "usage",
    "ModuleUsage": "usage",
    "StepUsage": "usage",
    "OutOfMemory": "result",
    "Profile": "result",
    "load": "archive",
    "open_snapshot": "opening",
    "profile": "profiling",
    "estimate": "estimation",
    "Estimate": "estimate_result",
    "BatchSizeRow": "scaling.rows",
    "auto_batch_size": "batch_size",
    "BatchSizeResult": "batch_size_result",
    "Trial": "batch_size_result",
    "fit_batch_size": "fitting.decorator",
    "fixed": "engines.batches",
    "DeviceError": "errors",
    "DoesNotFit": "errors",
    "SnapshotError": "errors",
    "UsageError": "errors",
    "VramkitError": "errors",
    "GPU": "gpus",
    "CachingAllocator": "allocator",
    "SimulatedOutOfMemory": "allocator",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
