"""Where a PyTorch training step's GPU memory goes, to the byte.

``import vramkit`` loads neither torch nor numpy: every name is imported when it is first used, so that the virtual
GPU can be switched on before torch is there.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Action": "tape.events",
    "Category": "tape.events",
    "Phase": "tape.events",
    "Tape": "tape.events",
    "Breakdown": "tape.breakdown",
    "Timeline": "tape.timeline",
    "ModulePhase": "tape.usage",
    "ModuleUsage": "tape.usage",
    "StepUsage": "tape.usage",
    "OutOfMemory": "tape.memory",
    "Profile": "results.profile",
    "load": "loading",
    "open_snapshot": "snapshots.opening",
    "profile": "profiling.profiler",
    "estimate": "estimation.estimate",
    "Estimate": "estimation.result",
    "BatchSizeRow": "scaling.rows",
    "auto_batch_size": "batch_size.auto",
    "BatchSizeResult": "batch_size.result",
    "Trial": "batch_size.trial",
    "fit_batch_size": "batch_size.fit",
    "fixed": "programs.batches",
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
