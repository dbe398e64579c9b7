"""From a program to a ``BatchSizeResult``: the search on the device or on an estimate, and its outcome in words. Knows
both machines; how they run and how sizes are chosen, others know.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import torch

from ..engines import Session
from ..errors import DoesNotFit
from ..gpus import GPU
from ..out_of_memory import quick_collections
from ..programs.batches import is_made, leaves_of, moved
from ..programs.program import Program
from ..sizes import format_size
from .bounds import Bounds
from .device_memory import allowed
from .on_device import DeviceMachine, same_memory
from .on_estimate import EstimatedMachine
from .ranks import Agreement
from .result import BatchSizeResult
from .saved_state import Surroundings
from .search import Found, Search
from .trial import Trial

_POINTS = 10  # of the curve
_IGNORED = (
    "Memory does not grow with the batch: does the step use the batch that it is given? {} is the largest size that "
    "was allowed or tried."
)


def answer_on_device(
    program: Program, device: int, bounds: Bounds, ranks: Agreement, on_trial: Callable[[Trial], object]
) -> BatchSizeResult:
    """Search on a CUDA device, which is the current one, and leave everything as it was.

    Raises:
        DoesNotFit: not even the smallest size that is allowed does.
        UsageError: the step keeps memory.
    """
    on_device = not is_made(program.batch) and any(
        isinstance(leaf, torch.Tensor) and leaf.is_cuda for _, leaf in leaves_of(program.batch)
    )
    if on_device:  # each trial's own is made on the host, and moved
        program = replace(program, batch=moved(program.batch, "cpu"))
    models = program.models.values()
    before = torch.cuda.memory_allocated(device)
    with ExitStack() as stack:
        stack.enter_context(quick_collections())
        stack.enter_context(same_memory(device))
        losses = [program.loss] if isinstance(program.loss, torch.nn.Module) else []

        def made() -> DeviceMachine:
            surroundings = Surroundings((*models, *losses), program.optimizers, program.step)
            stack.callback(surroundings.close)
            return DeviceMachine(
                program,
                surroundings,
                device,
                move_batch=on_device and program.step is not None,
                apart=lambda: ranks.apart(models),
            )

        machine = ranks.together(made)
        search = Search(machine, ranks, bounds, on_trial)
        search.forecast.limit = allowed(device)
        found = search.run()
    if not found.batch_size:
        raise _too_large(found, search, machine, torch.cuda.get_device_name(device))
    notes = [*machine.notes]
    left = torch.cuda.memory_allocated(device) - before
    if left > 0:
        notes.append(
            f"{format_size(left)} stay allocated that were not before: a library's own (cuDNN keeps states for "
            "dropout), or something that the step keeps."
        )
    return _result(found, search, machine, torch.cuda.get_device_name(device), notes)


def answer_by_estimate(
    session: Session, gpu: GPU, bounds: Bounds, ranks: Agreement, on_trial: Callable[[Trial], object]
) -> BatchSizeResult:
    """Search on an estimate.

    Raises:
        DoesNotFit: not even the smallest size that is allowed does.
        UsageError, DeviceError: as of ``Session.run``.
    """
    machine = EstimatedMachine(session, gpu)
    search = Search(machine, ranks, bounds, on_trial)
    found = search.run()
    if not found.batch_size:
        raise _too_large(found, search, machine, gpu.product)
    notes = [f"Nothing was run here: the {session.engine} engine predicted every size for {gpu.product}."]
    return _result(found, search, machine, gpu.product, notes)


def _result(
    found: Found, search: Search, machine: DeviceMachine | EstimatedMachine, device_name: str, notes: list[str]
) -> BatchSizeResult:
    trials = search.trials
    if not search.bounds.verify:
        sizes = sorted({found.batch_size, found.max_batch_size} - {*search.runs})
        trials += tuple(search.expected(size) for size in sizes)
        notes += [f"Not run, as verify=False: {', '.join(map(str, sizes))}."] * bool(sizes)
    if not found.grows:
        notes.append(_IGNORED.format(f"{found.max_batch_size:,}"))
    if not found.is_proven:
        notes.append("The search was ended before the next size was known not to fit: one a little larger may fit too.")
    [peak] = {trial.peak_reserved for trial in trials if trial.batch_size == found.batch_size}
    return BatchSizeResult(
        batch_size=found.batch_size,
        max_batch_size=found.max_batch_size,
        peak_reserved=peak,
        capacity=machine.capacity,
        memory_fraction=search.bounds.memory_fraction,
        trials=trials,
        device_name=device_name,
        curve=_curve(search, found.max_batch_size),
        notes=tuple(notes),
    )


def _curve(search: Search, maximum: int) -> tuple[tuple[int, int], ...]:
    sizes = sorted({max(1, maximum * point // (_POINTS - 2)) for point in range(_POINTS)})
    known = [(size, search.forecast.peaks(size)) for size in sizes]
    return tuple((size, peaks.reserved) for size, peaks in known if peaks is not None and peaks.in_order)


def _too_large(found: Found, search: Search, machine: DeviceMachine | EstimatedMachine, device_name: str) -> DoesNotFit:
    minimum = search.bounds.minimum
    trial = search.runs[minimum].trial if minimum in search.runs else next(iter(search.trials))
    capacity = machine.capacity
    if found.max_batch_size:
        limit = format_size(int(capacity * search.bounds.memory_fraction))
        return DoesNotFit(
            f"The largest batch within {search.bounds.memory_fraction:.4g} of {device_name}'s memory was asked for",
            f"batch size {trial.batch_size} reserves {format_size(trial.peak_reserved)}, and {limit} of "
            f"{format_size(capacity)} would be allowed",
            instead=f"Give a larger memory_fraction: all of the memory has room for {found.max_batch_size}",
        )
    if trial.ran_out:
        how = f"runs out of memory at {format_size(trial.peak_reserved)} reserved"
    elif trial.retries:
        how = "fits only by giving all cached memory back in the middle of a step, again and again"
    elif trial.fits:
        how = "does not fit on another rank"
    else:
        how = f"needs {format_size(trial.peak_reserved)}"
    error = DoesNotFit(
        f"The largest batch was asked for that fits {device_name}",
        f"batch size {trial.batch_size} {how}, of {format_size(capacity)} available",
        instead="Choose a larger card, or make the model or a row smaller. What holds the memory, and what would help:",
    )
    if machine.last is not None:
        error.args = (f"{error}\n\n{machine.last.report()}",)
    return error
