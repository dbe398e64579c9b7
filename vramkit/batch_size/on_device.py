"""A guarded run of a training step on the CUDA device, at one batch size: what it took, or that memory ran out. Knows
the device and how a run is cleaned up after; which sizes to run, the search decides.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch

from ..errors import UsageError
from ..out_of_memory import clean_up, forget, is_out_of_memory
from ..profiling.profiler import profile
from ..programs.failures import batch_moved, failure_of, more_telling
from ..programs.program import Program
from ..programs.training import Training
from ..results.profile import Profile
from ..scaling.requests import requests_of
from ..sizes import format_size
from ..tape.events import Action, Ints
from ..torch_internals import allocator, dynamo
from ..torch_internals.modules import compiles_itself, is_compiled
from .device_memory import available
from .leaks import find_leak
from .saved_state import Surroundings
from .search import TrialRun
from .trial import Trial

__all__ = ["DeviceMachine", "is_out_of_memory"]

_COMPILES_ANEW = (
    "torch.compile compiles the step anew for the second batch size that is tried, and that code then serves sizes "
    "that vary: it may take other memory than code for one size (dynamic=False: each size is compiled)"
)
_MANY_STEPS, _MUCH = 10_000, 0.1  # a leak that takes so much of the memory in so many steps is no detail
_MAX_EVENTS = 2_000_000
_SMALLEST = 512  # bytes of a block with one number


@dataclass
class DeviceMachine:
    """Runs a program on a CUDA device, as a process would that has done nothing on it but what is alive there now.

    Args:
        program: with its models on the device, or to be moved there for each run.
        surroundings: what is put back after each run.
        device: index of the CUDA device, which is the current one.
        move_batch: the user's step gets the batch on the device. It becomes True where the step fails without.
        apart: entered around each run, for steps that several ranks run at once.
    """

    runs_too_large: ClassVar[bool] = False
    program: Program
    surroundings: Surroundings
    device: int
    move_batch: bool = False
    apart: Callable[[], AbstractContextManager[None]] = nullcontext
    last: Profile | None = None
    """What the last run came to, in detail."""
    notes: list[str] = field(default_factory=list)
    """What should be known of the runs, in sentences."""
    ends: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """Of the last run's events, how many had come at the end of each step."""
    _is_compiled: bool = field(init=False)  # and the second size to be compiled is still to come
    _compiled_for: int = field(init=False, default=0)  # the first size that was run
    _capacity: int = field(init=False)
    _keeps: bool = field(init=False, default=False)  # the last run left something allocated

    def __post_init__(self) -> None:
        _empty()
        self._is_compiled = _is_compiled(self.program)
        self._capacity = self._available()

    @property
    def capacity(self) -> int:
        """Bytes that this process can have: free on the device, and what its allocator holds; see `Machine`."""
        return self._capacity

    def run(self, batch_size: int, *, is_probe: bool) -> TrialRun:
        """Run the program's steps; see `Machine`."""
        is_first, failure = self.last is None, None
        try:
            run = self._run_compiled(batch_size, is_probe=is_probe)
        except Exception as error:
            if self.program.step is None or self.move_batch:
                raise
            self.surroundings.put_back()
            failure, trace, told = error, error.__traceback__, failure_of("run a step", error)
            forget(error)
        if failure is not None:  # out of the except block, where nothing of the failed run is held any more
            self.move_batch = True
            try:
                run = self._run_compiled(batch_size, is_probe=is_probe)
            except Exception as error:
                self.move_batch = False
                if more_telling(told, failure_of("run a step", error)) is not told:
                    raise
                forget(error)
            else:
                failure = None
                self.notes.append(batch_moved(told))
        if failure is not None:
            try:
                raise failure.with_traceback(trace)
            finally:
                del failure, trace  # which lead to this frame
        if is_first and run.trial.fits:
            if self._keeps:
                # What a library makes once and keeps, such as cuDNN's states for dropout, later runs don't ask for: a
                # larger size would not be comparable with this one.
                run = self.run_steps(self.program.steps, batch_size, is_probe=is_probe)
            self._check_leak(batch_size)
        return run

    def _run_compiled(self, batch_size: int, *, is_probe: bool) -> TrialRun:
        """As `run_steps`. What ``torch.compile`` compiles meanwhile is there when the steps that count begin.

        Warns: UserWarning: what was compiled for the first size is about to be compiled for a second one.
        """
        if self._is_compiled and self._compiled_for not in (0, batch_size):
            warnings.warn(_COMPILES_ANEW, stacklevel=2)
            self._is_compiled = False  # it is said
        compiled, measured = dynamo.compilations(), dynamo.measurements()
        run = self.run_steps(self.program.steps, batch_size, is_probe=is_probe)
        if not self._compiled_for:
            self._compiled_for = batch_size
            self._is_compiled |= dynamo.compilations() > compiled
        if dynamo.measurements() > measured:  # in buffers that no later step takes
            run = self.run_steps(self.program.steps, batch_size, is_probe=is_probe)
        return run

    def _check_leak(self, batch_size: int) -> None:
        """Whether every step leaves more than the one before; a longer run has to say so too."""
        assert self.last is not None
        if find_leak(self.last.tape, self.ends) is None:
            return
        steps = 2 * self.program.steps
        if not self.run_steps(steps, batch_size, is_probe=True).trial.fits:
            return
        leak = find_leak(self.last.tape, self.ends)
        if leak is None:
            return
        grows = f"memory_allocated() grows by {format_size(leak.growth)} or more with every step: {leak}"
        if leak.growth * _MANY_STEPS < self.capacity * _MUCH:
            self.notes.append(f"At batch size {batch_size}, {grows}. Some steps later the batch that fits is smaller.")
            return
        raise UsageError(
            f"The largest batch was asked for, and {steps} steps were run with {batch_size} rows",
            grows,
            "Whatever fits now will not after some more steps",
            "Keep nothing that carries a graph: losses.append(loss.item()) instead of losses.append(loss)",
        )

    def run_steps(self, steps: int, batch_size: int, *, is_probe: bool) -> TrialRun:
        """As `run`, with another number of steps."""
        began = time.perf_counter()
        _empty()
        program = replace(self.program, steps=steps, hooks=())  # they are on these very objects
        before, counts, held = _counters(self.device), [], torch.cuda.memory_allocated(self.device)
        ran_out = False
        with profile(
            program.models, program.optimizers, device=f"cuda:{self.device}", max_events=_MAX_EVENTS
        ) as measuring:

            def after_step() -> None:
                measuring.step()
                counts.append(_events(self.device) - first)

            first = _events(self.device)
            try:
                with self.apart():
                    Training(program, batch_size, self.move_batch).run(_nothing, after_step)
            except BaseException as error:
                if not is_out_of_memory(error):
                    _say_where(error, batch_size)
                    raise
                ran_out = True
                forget(error)
            # Inside, so that the tape tells what lasts beyond a run from what does not.
            self.surroundings.put_back()
            gc.collect()
            clear_workspaces()
            total = _events(self.device) - first
        after = _counters(self.device)
        ran_out |= after["num_ooms"] > before["num_ooms"]  # a step may catch its own
        retries = after["num_alloc_retries"] - before["num_alloc_retries"] - ran_out
        clean_up()
        self._capacity = self._available()
        self._keeps = torch.cuda.memory_allocated(self.device) > held
        result = measuring.result
        self.last = result = result.on(self._name) if self._name in result.devices else result
        self.ends = _positions(result, counts, total)
        trial = Trial(
            batch_size=batch_size,
            fits=not ran_out and retries <= 0,
            peak_allocated=result.peak_allocated,
            peak_reserved=result.peak_reserved,
            seconds=time.perf_counter() - began,
            is_probe=is_probe,
            ran_out=ran_out,
            retries=max(0, retries),
        )
        if ran_out or len(self.ends) < steps:
            return TrialRun(trial=trial)
        requests = requests_of(batch_size, result.tape, end=int(self.ends[-1]), flushes=retries <= 0)
        return TrialRun(trial=trial, requests=requests)

    @property
    def _name(self) -> str:
        return f"cuda:{self.device}"

    def _available(self) -> int:
        return available(self.device, torch.cuda.memory_reserved(self.device))


def _is_compiled(program: Program) -> bool:
    """Whether it can be seen of a program, before it runs, that ``torch.compile`` compiles a part of it."""
    modules = [module for model in program.models.values() for module in model.modules()]
    return is_compiled(program.step) or any(is_compiled(module) or compiles_itself(module) for module in modules)


@contextmanager
def same_memory(device: int) -> Iterator[None]:
    """What torch's libraries hold on a device beside all tensors is afterwards what it was before, the cache is empty.

    Inside, cuBLAS begins without the workspace that it takes at its first product in a thread, as in a new process.
    """
    before = torch.cuda.memory_allocated(device)
    _empty()
    try:
        yield
    finally:
        _empty()
        if torch.cuda.memory_allocated(device) < before:
            with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cuda", enabled=False):
                one = torch.zeros(1, 1, device=f"cuda:{device}", requires_grad=True)
                product = one @ one
                if torch.cuda.memory_allocated(device) - 2 * _SMALLEST < before:
                    torch.autograd.backward([product])  # the autograd engine's thread has one of its own
                del one, product
            gc.collect()


def _empty() -> None:
    clear_workspaces()
    clean_up()


def clear_workspaces() -> None:
    """Give up cuBLAS's workspaces, which torch never gives up by itself; the next product makes a new one."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # torch's
        allocator.clear_workspaces()


def _positions(result: Profile, counts: Sequence[int], total: int) -> Ints:
    """Index of the first event after so many allocations and frees, for each count; empty where some are not there."""
    action = result.tape.events["action"]
    counted = np.flatnonzero(action <= Action.FREE) + 1
    if len(counted) < total:
        return np.zeros(0, np.int64)
    ends = np.concatenate([np.zeros(1, np.int64), counted])[counts]
    # The second half of a free comes right after the first, and moves no counter.
    completes = np.append(action == Action.FREE_COMPLETED, False)
    while completes[ends].any():
        ends += completes[ends]
    return ends


def _counters(device: int) -> dict[str, int]:
    return {
        name: int(torch.cuda.memory_stats_as_nested_dict(device)[name]) for name in ("num_alloc_retries", "num_ooms")
    }


def _events(device: int) -> int:
    """Allocations plus frees on a device since the process began."""
    count = torch.cuda.memory_stats_as_nested_dict(device)["allocation"]["all"]
    return int(count["allocated"]) + int(count["freed"])


def _say_where(error: BaseException, batch_size: int) -> None:
    if isinstance(error, Exception) and hasattr(error, "add_note"):
        error.add_note(f"vramkit.auto_batch_size was running the step with batch size {batch_size}.")


def _nothing() -> None:
    pass
