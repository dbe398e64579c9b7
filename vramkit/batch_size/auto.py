"""``vramkit.auto_batch_size``: the largest batch that fits. Checks the call, and chooses between the device and an
estimate; how a search goes, `vramkit.batch_size` knows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any, TextIO

import torch

from .. import gpus
from ..allocator import AllocatorConf
from ..counts import check_count
from ..engines import EngineName
from ..engines.choosing import check_engine, current_gpu, open_session
from ..errors import UsageError, shown
from ..gpus import GPU
from ..profiling.profiler import is_measuring
from ..programs.arguments import check_grows, places_of, program_of
from ..programs.objects import Models, OptimizerOrFactory
from ..programs.parallel import Parallel
from ..programs.program import Program
from ..ranks.place import GPUS_PER_NODE
from ..torch_internals.needs import require
from .bounds import Bounds
from .outcome import answer_by_estimate, answer_on_device
from .progress import Progress
from .ranks import Agreement
from .result import BatchSizeResult
from .trial import Trial

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_ASKED = "vramkit.auto_batch_size was called"


def auto_batch_size(
    model: Models | Callable[[], Models],
    batch: object,
    *,
    optimizer: OptimizerOrFactory | None = None,
    step: Callable[[Any], object] | None = None,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    autocast: torch.dtype | None = None,
    gpu: str | int | GPU | None = None,
    engine: EngineName | None = None,
    alloc_conf: str | None = None,
    memory_fraction: float = 0.8,
    multiple_of: int = 1,
    min_batch_size: int = 1,
    max_batch_size: int | None = None,
    effective_batch_size: int | None = None,
    verify: bool = True,
    on_trial: Callable[[Trial], object] | None = None,
    group: ProcessGroup | None = None,
    steps: int = 3,
    world_size: int | None = None,
    rank: int | Sequence[int] = 0,
    gpus_per_node: int = GPUS_PER_NODE,
    parallel: Parallel | None = None,
) -> BatchSizeResult:
    """Find the largest batch with which a training step fits the GPU.

    ::

        found = vramkit.auto_batch_size(model, batch, optimizer=optimizer, step=train_step)
        loader = DataLoader(dataset, batch_size=int(found))

    Two small batches are run and a third, larger one. Every allocation of theirs lies on a line, so the allocator can
    be simulated at any other size; what that says is the largest is run, and corrected where the run says otherwise.
    Where a step's allocations follow no line, the search goes by measured peaks, in small strides.

    A size fits if its steps run without an allocation that fails, or that succeeds only after the allocator has given
    back all it had cached: that is thrashing. What counts is reserved memory, beginning with an empty cache and with
    what is alive now, against what is free now.

    Afterwards everything is as it was: parameters, buffers, optimizer states and groups, gradients, modes, random
    generators, gradient scalers and schedulers that the step reaches, and ``memory_allocated()``. The allocator's cache
    has been given back; torch's peak statistics have seen the search, as torch has no way to set them.

    Args:
        model: an ``nn.Module``, or several: all that the step uses. One on the CPU is moved for each run, and back.
        batch: a tensor, or a pytree of tensors and dataclasses, dimension 0 of each tensor being the batch (else wrap
            it: ``vramkit.fixed``), which is resized; or a callable ``size -> batch``.
        optimizer: a ``torch.optim.Optimizer``, several, or a factory ``parameters -> Optimizer``. None: no optimizer.
        step: ``step(batch)``, one training step as you write it. None: the plain one of ``vramkit.estimate``.
        loss: ``loss(output, batch)``, for the plain step.
        autocast: the plain step's forward and loss run under ``torch.autocast`` with this dtype.
        gpu: a card as for ``vramkit.estimate``. Where it is another than the current CUDA device, and where there is
            none, nothing runs here: an estimate answers, and the trials are called "predicted".
        engine: what predicts, as for ``vramkit.estimate``; only where an estimate answers.
        alloc_conf: text of ``PYTORCH_CUDA_ALLOC_CONF`` to assume; None: the one in the environment. Only where an
            estimate answers: a run on the device has the settings of this process.
        memory_fraction: part of the memory that ``batch_size`` may reserve; ``max_batch_size`` is for all of it.
        multiple_of: only such sizes.
        min_batch_size: no smaller size is tried.
        max_batch_size: no larger one: the length of the dataset, for instance.
        effective_batch_size: rows for one optimizer step; gives ``accumulation_steps``. No larger batch is tried.
        verify: run every size that is returned. False: only the three batches from which it is predicted are run; the
            third has about an eighth of the answer's rows, up to half of them.
        on_trial: called with every trial.
        group: ranks that train together; see `vramkit.batch_size.ranks`. Each has to make this call, and all get the
            same answer: the size that fits on every one.
        steps: of each trial; by the third, optimizers have their state.
        world_size, rank, gpus_per_node, parallel: as for ``vramkit.estimate``, which answers then: how large a batch
            each rank can have.

    Returns:
        The answer; ``int()`` of it is ``batch_size``.

    Raises:
        DoesNotFit: not even ``min_batch_size`` does; the text says what holds the memory and what would help.
        UsageError: an argument can't be meant, ``engine`` or ``alloc_conf`` is given where the steps run on the device,
            or every step leaves more memory allocated than the one before.
        DeviceError: the engine can't be here; the text says what is missing.

    What the step itself raises comes through, with a note that says at which size.

    Known limitations: values of a resized sample are its own, repeated, or zeros where they would take more than 64 MiB
    a tensor. Memory that libraries take for good (cuDNN's states for dropout) stays allocated, and a note says so.
    What ``torch.compile`` has compiled is compiled anew at the second size, and a warning says so.
    """
    require(_ASKED, "programs")
    program = program_of(
        _ASKED,
        model,
        batch,
        optimizer=optimizer,
        step=step,
        loss=loss,
        autocast=autocast,
        steps=steps,
        places=places_of(_ASKED, parallel, world_size, rank, gpus_per_node),
        parallel=parallel,
    )
    if effective_batch_size is not None:
        effective_batch_size = check_count(_ASKED, "effective_batch_size", effective_batch_size)
    bounds = _bounds(memory_fraction, multiple_of, min_batch_size, max_batch_size, effective_batch_size, verify=verify)
    check_grows(_ASKED, program)
    check_engine(_ASKED, engine)
    if alloc_conf is not None:
        AllocatorConf.parse(alloc_conf)
    with Agreement(group) as ranks, Progress(ranks.is_first and _has_terminal(), on_trial) as progress:
        ranks.same(steps=steps)  # the bounds, the search agrees on
        device = _device(program, gpu)
        if device is None:
            card = current_gpu() if gpu is None else gpus.find(gpu)
            found = answer_by_estimate(open_session(program, engine, alloc_conf), card, bounds, ranks, progress)
        else:
            _check_nothing_is_predicted(engine=engine, alloc_conf=alloc_conf)
            require(_ASKED, "profile", "profile on CUDA", "batch size on CUDA")
            _check_shapes(program)
            _check_nothing_measures()
            with torch.cuda.device(device):
                found = answer_on_device(program, device, bounds, ranks, progress)
    return replace(found, effective_batch_size=effective_batch_size)


def _has_terminal() -> bool:
    stream: TextIO | None = sys.stderr  # None: a process without a console
    return stream is not None and stream.isatty()


def _check_nothing_is_predicted(**given: str | None) -> None:
    named = " and ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
    if named:
        raise UsageError(
            _ASKED,
            f"with {named}",
            "The steps run on the CUDA device that is here, on torch's own allocator as this process has set it",
            "Leave it out (settings go into PYTORCH_CUDA_ALLOC_CONF before torch starts), name another card to have it "
            'predicted (gpu="a100-40gb"), or predict this one: vramkit.estimate(...).largest_batch_size()',
        )


def _check_nothing_measures() -> None:
    if is_measuring():
        raise UsageError(
            _ASKED,
            "a vramkit.profile (or `vramkit run`) is measuring in this process",
            "Its own measurements would be taken for the program's, and the other way round",
            "Find the batch size before the profile begins, or for another card: gpu=...",
        )


def _check_shapes(program: Program) -> None:
    """Raises: UsageError for a lazy module. What its first forward makes of it could not be put back."""
    tensors = [t for model in program.models.values() for t in (*model.parameters(), *model.buffers())]
    lazy = sum(map(torch.nn.parameter.is_lazy, tensors))
    if lazy:
        raise UsageError(
            _ASKED,
            f"{lazy} of the model's parameters have no shape yet",
            "Lazy modules make them in their first forward",
            "Call the model once, on a batch like yours",
        )


def _bounds(
    fraction: float, multiple_of: int, minimum: int, maximum: int | None, effective: int | None, *, verify: bool
) -> Bounds:
    is_number = isinstance(fraction, Real) and not isinstance(fraction, bool)
    if not is_number or not 0 < fraction <= 1:
        raise UsageError(
            _ASKED,
            f"with memory_fraction={shown(fraction)}",
            "It is the part of the memory that a batch may take",
            "Give a number above 0, at most 1; 0.8 keeps a fifth free",
        )
    multiple_of = check_count(_ASKED, "multiple_of", multiple_of)
    minimum = check_count(_ASKED, "min_batch_size", minimum)
    if maximum is not None:
        maximum = check_count(_ASKED, "max_batch_size", maximum) // multiple_of * multiple_of
    first = -(-minimum // multiple_of) * multiple_of
    if maximum is not None and maximum < first:
        raise UsageError(
            _ASKED,
            f"with min_batch_size={minimum}, max_batch_size={maximum} and multiple_of={multiple_of}",
            "No size keeps to all of them",
            "Widen the bounds",
        )
    if effective is not None:
        even = max(first, effective // multiple_of * multiple_of)
        maximum = even if maximum is None else min(maximum, even)
    return Bounds(
        minimum=first, maximum=maximum, multiple_of=multiple_of, memory_fraction=float(fraction), verify=verify
    )


def _device(program: Program, gpu: str | int | GPU | None) -> int | None:
    """Index of the CUDA device to run on; None: there is none, or another card was named."""
    tensors = [t for model in program.models.values() for t in (*model.parameters(), *model.buffers())]
    if program.places or not torch.cuda.is_available() or any(tensor.is_meta for tensor in tensors):
        return None
    places = {tensor.device.index for tensor in tensors if tensor.is_cuda}
    if len(places) > 1:
        raise UsageError(
            _ASKED,
            f"the models lie on {', '.join(f'cuda:{place}' for place in sorted(places))}",
            "What fits is asked of one device",
            "Pass the models of one device, and group=... where every rank has its own",
        )
    device: int = places.pop() if places else torch.cuda.current_device()
    if gpu is not None:
        card = gpus.find(gpu)
        if card != current_gpu() and card.product != torch.cuda.get_device_name(device):
            return None
    return device
