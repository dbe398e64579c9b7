"""Runs a program, and counts what its objects hold on the device: modules, gradients and optimizers, found by gc.

    vramkit run ... benchmarks/programs/census.py FILE SCRIPT [arguments ...]      (or FILE -m MODULE ...)

The program runs as it is. After some of its optimizer steps and at its end, every module and every optimizer that is
alive is asked for its tensors; FILE gets where their storages lie. Knows nothing of what vramkit says of them.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from vramkit.cli.script import Script

_STEPS = frozenset({1, 2, 3, 5, 9, 17, 33})
KINDS = ("parameter", "buffer", "gradient", "optimizer_state", "attribute")
"""What a storage is counted as: the first of these that it is. An attribute of a module may be anything else, too."""


class Census:
    """Counts, and writes what it counted."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._process = os.getpid()
        self._steps = 0
        self._moments: list[dict[str, Any]] = []

    def after_step(self, *_: object) -> None:
        """Count after an optimizer's step, if it is one of those that are looked at."""
        self._steps += 1
        if self._steps in _STEPS:
            self.take(f"optimizer step {self._steps}")

    def take(self, moment: str) -> None:
        """Count now."""
        if os.getpid() != self._process or not torch.cuda.is_initialized():
            return
        statistics = torch.cuda.memory_stats(0)
        self._moments.append(
            {
                "moment": moment,
                "allocated": statistics["allocation.all.allocated"],
                "freed": statistics["allocation.all.freed"],
                "bytes": statistics["allocated_bytes.all.current"],
                **_storages(),
            }
        )

    def write(self) -> None:
        """Write all that was counted."""
        if os.getpid() == self._process:
            with open(self._path, "w", encoding="utf-8") as file:
                json.dump(self._moments, file)


def _storages() -> dict[str, Any]:
    """Where the storages of each kind lie, with their sizes; and which of them an optimizer trains."""
    objects = gc.get_objects()
    modules = [each for each in objects if issubclass(type(each), torch.nn.Module)]
    optimizers = [each for each in objects if issubclass(type(each), torch.optim.Optimizer)]
    grouped = [each for optimizer in optimizers for group in _groups(optimizer) for each in group]
    parameters = [*(each for module in modules for each in _values(module, "_parameters")), *grouped]
    parameters += [each for parameter in parameters for each in _inside(getattr(parameter, "__dict__", None))]
    buffers = [each for module in modules for each in _values(module, "_buffers")]
    gradients = [each.grad for each in parameters if isinstance(each, torch.Tensor) and each.is_leaf]
    states = [each for optimizer in optimizers for each in _inside(vars(optimizer).get("state", {}))]
    attributes = [each for module in modules for each in _inside(list(vars(module).values()))]
    found: dict[str, dict[int, int]] = {}
    seen: set[int] = set()
    for kind, tensors in zip(KINDS, (parameters, buffers, gradients, states, attributes), strict=True):
        found[kind] = {}
        for tensor in tensors:
            for address, size in _memory(tensor):
                if address not in seen:
                    seen.add(address)
                    found[kind][address] = size
    return {"storages": found, "trained": [address for each in grouped for address, _ in _memory(each)]}


def _values(module: torch.nn.Module, table: str) -> list[object]:
    return list(vars(module).get(table, {}).values())


def _groups(optimizer: torch.optim.Optimizer) -> Iterator[list[object]]:
    for group in vars(optimizer).get("param_groups", ()):
        yield list(group["params"])


def _inside(value: object) -> Iterator[object]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _inside(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _inside(each)
    elif type(value).__module__.startswith("bitsandbytes.") and not isinstance(value, torch.nn.Module):
        yield from _inside(vars(value))  # quantised weights keep their scales in an object beside them


def _memory(tensor: object) -> Iterator[tuple[int, int]]:
    """Address and size of each storage that a tensor, or a wrapper of tensors, lies in."""
    if not isinstance(tensor, torch.Tensor):
        return
    flatten = getattr(type(tensor), "__tensor_flatten__", None)
    if flatten is not None:
        for name in tensor.__tensor_flatten__()[0]:
            yield from _memory(getattr(tensor, name))
        return
    if tensor.device.type != "cuda" or tensor.device.index not in {0, None}:
        return
    with contextlib.suppress(RuntimeError, NotImplementedError):  # sparse ones have parts
        storage = tensor.untyped_storage()
        if storage.nbytes():
            yield storage.data_ptr(), storage.nbytes()


def main() -> None:
    """Run the program that the command line names."""
    path, *program = sys.argv[1:]
    is_module = program[0] == "-m"
    target, *arguments = program[is_module:]
    census = Census(os.path.abspath(path))
    hook = register_optimizer_step_post_hook(census.after_step)
    try:
        Script(target=target, arguments=tuple(arguments), is_module=is_module).run()
    finally:
        hook.remove()
        census.take("end")
        census.write()


main()
