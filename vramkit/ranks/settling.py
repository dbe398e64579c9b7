"""When memory comes free that NCCL's watchdog holds. Knows the thread, and steps of optimizers; knows no collective."""

from __future__ import annotations

import atexit
import gc
import time
import weakref
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed import distributed_c10d
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ..virtual_gpu import current

_THREAD = "pt_nccl_watchdg"
_ROUNDS = 2  # the one that it may be in has begun before
_LIMIT = 2.0  # seconds


class Settling:
    """Lets NCCL's watchdog do its work at the end of each of the first optimizer steps, and at no other time.

    The watchdog looks every 0.1 s which collectives are done, and lets go of what they held: DDP's first buckets, as
    large as all gradients, what a communication hook compressed, what HSDP reduces among replicas. When that is, is a
    race, on a card too. Here they are gone when the next step begins, and not before, so that every run has the same
    events. Where several optimizers follow each other it is the last one's end: their host is ahead of the device.

    Args:
        steps: how many; later ones race. A wait takes 0.1 to 0.2 s; the peak of a training is in its first steps.
    """

    def __init__(self, steps: int = 256) -> None:
        self._left = steps
        self._stepped: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._is_over = False

    def install(self) -> None:
        """Hold it from now on."""
        _hold(True)
        register_optimizer_step_pre_hook(self._begins)
        register_optimizer_step_post_hook(self._ended)
        atexit.register(_let_end)
        destroy = _before(distributed.destroy_process_group, lambda: _hold(False))
        distributed.destroy_process_group = destroy
        distributed_c10d.destroy_process_group = destroy

    def _begins(self, optimizer: torch.optim.Optimizer, *args: object) -> None:
        if optimizer in self._stepped and not self._is_over:  # another one that had gradients did not come
            self._settle()
        if self._is_over:
            self._stepped.clear()
            self._is_over = False

    def _ended(self, optimizer: torch.optim.Optimizer, *args: object) -> None:
        if self._left:
            self._stepped.add(optimizer)
            if not self._is_another_due():
                self._settle()

    def _settle(self) -> None:
        self._is_over = True  # until the next one begins: a step may call another class's, and ends twice
        if self._left and distributed.is_initialized():
            self._left -= 1
            _hold(False)
            _wait_for_rounds()
            _hold(self._left > 0)

    def _is_another_due(self) -> bool:
        """Whether an optimizer that has not stepped yet has gradients which none of the others had."""
        done = {id(parameter) for optimizer in self._stepped for parameter in _parameters_of(optimizer)}
        return any(
            parameter.grad is not None and id(parameter) not in done
            for each in gc.get_objects()
            if issubclass(type(each), torch.optim.Optimizer) and each not in self._stepped
            for parameter in _parameters_of(each)
        )


def _parameters_of(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    groups = getattr(optimizer, "param_groups", ())  # wrappers of others, which are no more than begun, have none
    return (parameter for group in groups for parameter in group["params"])


def _let_end() -> None:
    """Let the watchdog let go of everything before Python ends: some of it is Python's."""
    _hold(False)
    if distributed.is_initialized():
        _wait_for_rounds()


def _hold(held: bool) -> None:
    gpu = current()
    if gpu is not None:
        gpu.hold_watchdog(held)


def _before(function: Callable[..., Any], first: Callable[[], object]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        first()
        return function(*args, **kwargs)

    return call


def _wait_for_rounds() -> None:
    before, deadline = _threads(), time.monotonic() + _LIMIT
    while time.monotonic() < deadline:
        now = _threads()
        if all(_is_through(*now[name], before[name][1]) for name in before if name in now):
            return
        time.sleep(0.005)


def _is_through(state: str, sleeps: int, before: int) -> bool:
    """Whether a thread has gone round and sleeps again."""
    return state == "S" and sleeps >= before + _ROUNDS


def _threads() -> dict[str, tuple[str, int]]:
    """Of each watchdog its state, and how often it was put to sleep so far."""
    found = {}
    for task in Path("/proc/self/task").glob("*"):
        try:
            if task.joinpath("comm").read_text().startswith(_THREAD):
                lines = task.joinpath("status").read_text().splitlines()
                status = dict(line.split(":", 1) for line in lines)
                found[task.name] = status["State"].split()[0], int(status["voluntary_ctxt_switches"])
        except OSError:  # it has just ended
            continue
    return found
