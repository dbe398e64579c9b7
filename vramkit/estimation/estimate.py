"""``vramkit.estimate``: predict where memory would go, on a GPU that need not be here. Checks the call, chooses the
engine and the card; how a prediction is made, the engines know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import gpus
from ..allocator import AllocatorConf
from ..counts import check_count
from ..engines import EngineName
from ..engines.choosing import check_engine, current_gpu, open_session
from ..gpus import GPU
from ..programs.arguments import check_grows, places_of, program_of
from ..programs.batches import is_made
from ..programs.objects import Models, OptimizerOrFactory
from ..programs.parallel import Parallel
from ..ranks.place import GPUS_PER_NODE
from ..torch_internals.needs import require
from .result import Estimate, predict

_ASKED = "vramkit.estimate was called"


def estimate(
    model: Models | Callable[[], Models],
    batch: object,
    *,
    optimizer: OptimizerOrFactory | None = None,
    step: Callable[[Any], object] | None = None,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    steps: int = 3,
    batch_size: int | None = None,
    gpu: str | int | GPU | None = None,
    engine: EngineName | None = None,
    alloc_conf: str | None = None,
    autocast: torch.dtype | None = None,
    world_size: int | None = None,
    rank: int | Sequence[int] = 0,
    gpus_per_node: int = GPUS_PER_NODE,
    parallel: Parallel | None = None,
) -> Estimate:
    """Predict where a training program's GPU memory goes, without the GPU.

    ::

        model = torch.nn.Linear(512, 512)
        estimate = vramkit.estimate(model, torch.zeros(64, 512), optimizer=torch.optim.AdamW, gpu="a100-40gb")
        print(estimate)

    What is predicted is a fresh process that builds the model on the CPU, moves it with ``.to("cuda")``, and runs
    ``steps`` steps: its ``torch.cuda.max_memory_allocated()`` and ``max_memory_reserved()``, to the byte. Gradients
    and optimizer states that are there already don't count, a fresh process has none; they and everything else of
    yours are left as found, because the step runs in a helper process, or on a copy.

    Without ``step`` the plain one runs, under ``torch.no_grad()`` and ``inference_mode()`` its first two lines::

        output = model(*batch)              # model(**batch) for a dict, model(batch) for a tensor
        value = loss(output, batch)         # without loss: output.loss, or the scalar output, or its sum
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    Args:
        model: an ``nn.Module`` on any device, ``meta`` too, a sequence, or a dict of them by name: every one that the
            step uses.
        batch: a tensor, or a pytree of tensors and dataclasses, dimension 0 of each tensor being the batch (else wrap
            it: ``vramkit.fixed``), or a callable ``size -> batch``, which is called at each step. Where there is a
            ``loss`` and the model takes fewer arguments than the batch has, it gets the first ones, or those whose
            names it knows.
        optimizer: a ``torch.optim.Optimizer``, several, or a factory ``parameters -> Optimizer``, a class for instance.
            None: no optimizer step.
        step: ``step(batch)``, one training step as you write it, closing over the model and the optimizer that are
            passed. It gets the batch as it is; where it fails because the batch is on the CPU, and where the batch
            was on the GPU, it gets it on the GPU.
        loss: ``loss(output, batch)``, for the plain step.
        steps: how many; the memory of the third is that of all that follow.
        batch_size: resize the batch; None: as it is, or 1 for a callable.
        gpu: a name of the catalogue, a size such as "24 GiB", bytes, or a `GPU`. None: the current CUDA device, else
            "a100-80gb".
        engine: "virtual": run the step on the virtual GPU, in a helper process; "fake": on fake tensors, in this one.
            None: virtual where it can be, else fake, with a note that says why.
        alloc_conf: text of ``PYTORCH_CUDA_ALLOC_CONF`` to assume; None: the one in the environment.
        autocast: the plain step's forward and loss run under ``torch.autocast`` with this dtype.
        world_size: ranks of a distributed job, of which one is predicted, on the virtual GPU. It finds the variables
            that ``torchrun`` sets, and its own GPU chosen; ``model`` may be a function that sets up what is parallel
            and returns the model::

                def shards():
                    dist.init_process_group("nccl")
                    with torch.device("meta"):
                        model = Transformer()
                    fully_shard(model)
                    return model.to_empty(device="cuda")

                estimate = vramkit.estimate(shards, batch, optimizer=torch.optim.AdamW, world_size=64, gpu="h100")

        rank: which one. It is alone: what the others send is taken to be what it sends itself. Several, such as
            ``[0, 32]``: each is run, and the fullest is the answer, here and in all that the estimate is asked.
        gpus_per_node: GPUs of each machine.
        parallel: how the ranks of a job share the training, where nothing in the program says so: ``vramkit.FSDP(8)``
            or ``vramkit.DDP(8)``. The plain step runs, and the optimizer is made by a factory. See there for the
            training script that is predicted so.

    Returns:
        The prediction. Where the program does not fit the card there is one too, and ``fits()`` is False.

    Raises:
        UsageError: an argument is not what it should be, something can't be sent to the helper process, or the step
            itself fails: the cause is its traceback.
        DeviceError: the virtual GPU can't be here; the text says what is missing.
        DoesNotFit: more would be needed than the largest virtual card has, 4 TiB.

    Known limitations: the helper computes nothing, so what depends on values on the device is as for zeros. A step
    that looks at other processes, or at a device by number, finds one GPU. Only a first device is predicted.
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
    if batch_size is not None:
        batch_size = check_count(_ASKED, "batch_size", batch_size)
        check_grows(f"{_ASKED} with batch_size={batch_size}", program)
    if alloc_conf is not None:
        AllocatorConf.parse(alloc_conf)
    check_engine(_ASKED, engine)
    card = current_gpu() if gpu is None else gpus.find(gpu)
    rows = batch_size or program.batch_size or int(is_made(batch))
    return predict(open_session(program, engine, alloc_conf), card, rows)
