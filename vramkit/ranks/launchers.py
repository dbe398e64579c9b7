"""Launchers in a process that is a rank already: of the processes that they would start, they start this rank's.

Knows the two functions of torch on which launchers stand: ``torchrun``'s and accelerate's on `launch_agent`, ``spawn``
and what is built on it on `start_processes`. Others, which set ``RANK`` themselves, start what they start.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from types import ModuleType
from typing import Any

from torch import multiprocessing

from ..errors import UsageError
from ..torch_internals.late import when_imported
from .place import Place


def install() -> None:
    """Have every launcher start this process's rank alone, from now on."""
    started = _starting(vars(multiprocessing)["start_processes"])
    for module in (multiprocessing, sys.modules["torch.multiprocessing.spawn"]):
        vars(module)["start_processes"] = started
    when_imported("torch.distributed.launcher.api", _replace_agent)


def _replace_agent(module: ModuleType) -> None:
    vars(module)["launch_agent"] = _launch


def _launch(config: Any, entrypoint: Callable[..., object] | str, args: Sequence[object], **_: object) -> object:
    """Run what a launcher of torch's would run in so many processes, as one rank."""
    place = Place.of(os.environ)
    assert place is not None
    nodes, each = config.max_nodes, config.nproc_per_node
    if (nodes * each, each) != (place.world_size, place.local_world_size):
        raise UsageError(
            f"A launcher was to start {each:,} ranks on each of {nodes:,} machines",
            f"in a job of {place.world_size:,}, of which {place.local_world_size:,} on this one",
            instead=f"Play what it starts: --world-size {nodes * each} --gpus-per-node {each}",
        )
    if callable(entrypoint):
        return {place.rank: entrypoint(*args)}
    code = subprocess.run([entrypoint, *map(str, args)]).returncode
    if code:
        raise SystemExit(code if code > 0 else 128 - code)
    return {place.rank: None}


def _starting(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def start_processes(
        fn: Callable[..., object], args: Sequence[object] = (), nprocs: int = 1, *rest: Any, **others: Any
    ) -> Any:
        place = Place.of(os.environ)
        if place is None or nprocs != place.local_world_size:  # not one for each rank of this machine
            return original(fn, args, nprocs, *rest, **others)
        return original(_As(fn, place.local_rank), args, 1, *rest, **others)

    return start_processes


@dataclass(frozen=True)
class _As:
    """A function that is told another number of its process."""

    function: Callable[..., object]
    number: int

    def __call__(self, _: int, *args: object) -> object:
        return self.function(self.number, *args)
