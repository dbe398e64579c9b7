"""What the verbs that predict and the closed forms are given: checked, and made into a program. Knows what an argument
may be; knows neither engines nor devices.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch.utils.data import DataLoader

from ..counts import check_count
from ..errors import UsageError
from ..ranks.place import GPUS_PER_NODE, Place
from ..torch_internals.dispatch import DeviceContext, function_modes
from .batches import batch_size_of, is_made
from .hooks import hooks_of
from .objects import Models, OptimizerOrFactory, models_of, optimizers_of
from .parallel import Parallel
from .program import Program
from .sizeless import without_size


def program_of(
    asked: str,
    model: Models | Callable[[], Models],
    batch: object,
    *,
    optimizer: OptimizerOrFactory | None,
    step: Callable[[Any], object] | None,
    loss: Callable[[Any, Any], torch.Tensor] | None,
    autocast: torch.dtype | None,
    steps: int,
    places: tuple[Place, ...] = (),
    parallel: Parallel | None = None,
) -> Program:
    """A program, from the arguments of a verb; see ``vramkit.estimate``.

    Args:
        asked: what was asked for, as an error's text begins.
        places: its ranks in a distributed job; where there are some, the model may be a function that makes it.
        parallel: how the ranks share the training; None: the program sets that up itself.

    Raises:
        UsageError: an argument is not what it should be.
    """
    make = model if places and _makes(model) else None
    models = {} if make is not None else models_of(asked, model)
    if not models and make is None:
        raise UsageError(asked, "with no model", instead="Pass an nn.Module, a sequence or a dict of them")
    _check_batch(asked, batch)
    steps = check_count(asked, "steps", steps)
    optimizers, factory = optimizers_or_factory(asked, optimizer)
    _check_step(asked, step, models, factory, loss, autocast)
    if parallel is not None:
        _check_parallel(asked, parallel, step, optimizers)
    return Program(
        models=models,
        batch=batch,
        batch_size=0 if is_made(batch) else batch_size_of(batch),
        steps=steps,
        optimizers=optimizers,
        make_optimizer=factory,
        step=step,
        loss=loss,
        autocast=autocast,
        hooks=hooks_of(models, optimizers),
        by_default_on_cuda=_makes_on_cuda(),
        places=places,
        make_models=make,
        parallel=parallel,
        gradients="inference" if torch.is_inference_mode_enabled() else "on" if torch.is_grad_enabled() else "off",
    )


def _makes(model: object) -> TypeGuard[Callable[[], object]]:
    """Whether it makes models, and is none."""
    return callable(model) and not isinstance(model, (torch.nn.Module, Mapping, Sequence))


def _makes_on_cuda() -> bool:
    """Whether functions make tensors on a GPU. To ask torch for its default device would make one, and begin CUDA."""
    contexts = [mode for mode in function_modes() if isinstance(mode, DeviceContext)]
    return bool(contexts) and contexts[-1].device.type == "cuda"


def check_grows(asked: str, program: Program) -> None:
    """Raises: UsageError for a batch that can't be made larger or smaller."""
    if not program.batch_size and not is_made(program.batch):
        raise without_size(asked)


def _check_batch(asked: str, batch: object) -> None:
    """Raises: UsageError for what gives batches, one after the other, and is none itself."""
    if isinstance(batch, (DataLoader, Iterator)):
        raise UsageError(
            asked,
            f"the batch is {type(batch).__name__}",
            "It takes one batch, which is the same in every step",
            "Pass one of the loader's: next(iter(loader))",
        )


def optimizers_or_factory(
    asked: str, given: OptimizerOrFactory | object
) -> tuple[tuple[torch.optim.Optimizer, ...], Callable[..., object] | None]:
    """Optimizers, or else what makes some; None: neither. Raises: UsageError for anything else."""
    if callable(given) and not isinstance(given, torch.optim.Optimizer):
        return (), given
    instead = "Pass a torch.optim.Optimizer, several, or a factory: optimizer=torch.optim.AdamW"
    return tuple(optimizers_of(asked, given, instead).values()), None


def _check_loss(asked: str, loss: object) -> None:
    if loss is not None and (isinstance(loss, type) or not callable(loss)):
        raise UsageError(
            asked,
            f"the loss is {loss.__name__}, a class" if isinstance(loss, type) else f"the loss is {loss!r:.60}",
            "It is called with the output and the batch, and returns a tensor of one number",
            "Pass a function: loss=lambda output, batch: torch.nn.functional.cross_entropy(output, batch[1])",
        )


def _check_autocast(asked: str, autocast: object) -> None:
    if autocast not in (None, torch.float16, torch.bfloat16, torch.float32):
        raise UsageError(
            asked,
            f"with autocast={autocast!r}",
            "It is the dtype of torch.autocast on CUDA",
            "Give torch.bfloat16 or torch.float16",
        )


def places_of(
    asked: str,
    parallel: Parallel | None,
    world_size: int | None = None,
    rank: int | Sequence[int] = 0,
    gpus_per_node: int = GPUS_PER_NODE,
) -> tuple[Place, ...]:
    """The ranks that are asked for; empty: there is no job.

    Raises:
        UsageError: there is no such rank, or no number of ranks.
    """
    if parallel is not None:
        if not isinstance(parallel, Parallel):
            raise UsageError(
                asked, f"with parallel={parallel!r:.60}", instead="Give vramkit.FSDP(8) or vramkit.DDP(8), for 8 ranks"
            )
        if world_size not in (None, parallel.world_size):
            raise UsageError(
                asked, f"with world_size={world_size} and parallel={parallel}", instead="Leave world_size out"
            )
        world_size = parallel.world_size
    if world_size is not None:
        size, gpus = (check_count(asked, "world_size", world_size), check_count(asked, "gpus_per_node", gpus_per_node))
        ranks = sorted({operator.index(each) for each in (rank if isinstance(rank, Iterable) else [rank])})
        if not ranks:
            raise UsageError(asked, f"with rank={rank!r}", instead="Give a rank, or several: rank=[0, 32]")
        return tuple(Place(rank=each, world_size=size, gpus_per_node=gpus) for each in ranks)
    if rank != 0 or gpus_per_node != GPUS_PER_NODE:
        raise UsageError(
            asked,
            f"with rank={rank}, gpus_per_node={gpus_per_node} and no world_size",
            instead="Say of how many ranks: world_size=64",
        )
    return ()


def _check_parallel(asked: str, parallel: Parallel, step: object, optimizers: Sequence[object]) -> None:
    """Raises: UsageError for what was made for the model as it is before it is parallel."""
    if step is not None:
        raise UsageError(
            asked,
            f"with a step and with parallel={parallel}",
            "The step was written for the model as it is",
            "Leave step out, or set up what is parallel yourself: pass a function that returns the model, and "
            f"world_size={parallel.world_size}",
        )
    if optimizers:
        raise UsageError(
            asked,
            f"with an optimizer and with parallel={parallel}",
            "The parameters of the parallel model are others",
            "Pass what makes the optimizer: optimizer=torch.optim.AdamW, or lambda parameters: AdamW(parameters, lr=1)",
        )


def _check_step(
    asked: str,
    step: object,
    models: Mapping[str, object],
    factory: object,
    loss: object,
    autocast: object,
) -> None:
    if step is None:
        if len(models) > 1:
            raise UsageError(
                asked,
                f"with {len(models)} models and no step",
                "The plain step calls one model",
                "Pass step=..., a function of the batch that calls them",
            )
        _check_loss(asked, loss)
        _check_autocast(asked, autocast)
        return
    if not callable(step):
        raise UsageError(
            asked, f"the step is {step!r:.60}", "It is called with a batch", "Pass a function; how many: steps=3"
        )
    idle = [
        name for name, value in (("optimizer", factory), ("loss", loss), ("autocast", autocast)) if value is not None
    ]
    if idle:
        kind = " (a factory)" if idle[0] == "optimizer" else ""
        raise UsageError(
            asked,
            f"with a step and with {idle[0]}={kind}".removesuffix("="),
            "A step of your own brings everything itself, and would not use it",
            "Pass the very optimizer that the step uses" if kind else f"Leave {idle[0]} out",
        )
