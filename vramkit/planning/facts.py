"""What can be seen of a program without a run, as far as changes depend on that. Knows programs; changes nothing."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..allocator import AllocatorConf
from ..gpus import GPU
from ..programs.batches import is_made
from ..programs.blocks import repeated_blocks
from ..programs.own_training import brings_training
from ..programs.program import Program
from ..programs.training import keywords_of, positions_of
from ..programs.written import written
from ..torch_internals.modules import is_compiled
from .untrained import untrained

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

BatchForm = Literal["tensor", "sequence", "dict", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerFacts:
    """The one optimizer of a program."""

    kind: str
    """Name of its class in ``torch.optim``; empty: it is of none of these."""
    options: tuple[tuple[str, object], ...]
    """What it was given beside its parameters, without what is the default."""
    known: frozenset[str]
    """What it could be given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What changes look at."""

    gpu: GPU
    batch_size: int
    trains: bool
    """Autograd is on."""
    own_step: bool
    """It brings a training step, or its model does, whose code nobody changes from outside."""
    value: str
    """The loss as Python, where a step that vramkit brings computes it from ``batch``; else empty."""
    shifted: bool
    """That loss is the cross entropy of logits and the labels one place later."""
    accumulates: int
    """How often such a step goes through the model, with the whole batch each time."""
    one_model: bool
    compiled: bool
    """Something of its models comes from ``torch.compile``."""
    autocast: torch.dtype | None
    blocks: tuple[str, ...]
    """Paths of the blocks that its model repeats."""
    head: str
    """Path of the model's last linear layer; empty: it has none."""
    has_loss: bool
    """A loss was passed: the model does not compute it."""
    trained_in_float32: bool
    frozen_in_float32: bool
    trained_bytes: int
    floats_in_batch: bool
    """Or nobody knows."""
    normalizes_batches: bool
    """Some layer computes statistics of the batch."""
    optimizers: int
    """How many; -1: not known."""
    optimizer: OptimizerFacts | None
    untrained_modules: tuple[str, ...]
    untrained_parameters: tuple[str, ...]
    expands: bool
    """The allocator's segments grow already."""
    batch_form: BatchForm
    splits: bool
    """The batch is tensors with the batch size in dimension 0, and nothing else."""
    call: str
    """How the model is called with ``batch``, as Python."""


def facts_of(program: Program, gpu: GPU, batch_size: int, conf: AllocatorConf) -> Facts:
    """Look at a program, for a card, a batch size and an allocator."""
    models = [*program.models.values()]
    parameters = [each for model in models for each in model.parameters()]
    modules = [module for model in models for module in model.modules()]
    optimizers, copies = _optimizers(program)
    trained = {
        copies.get(id(each), id(each))
        for one in optimizers or ()
        for group in one.param_groups
        for each in group["params"]
    }
    idle = [untrained(model, trained) for model in models if optimizers] if len(models) == 1 else []
    form = _form(program.batch)
    own = written(program.step)
    leaves = _leaves(program.batch, form)
    return Facts(
        gpu=gpu,
        batch_size=batch_size,
        trains=program.gradients == "on",
        own_step=(program.step is not None and own is None) or _trains_itself(program),
        value="" if own is None else own.value,
        shifted=own is not None and own.shifted,
        accumulates=1 if own is None else own.accumulate,
        one_model=len(models) == 1,
        compiled=any(map(is_compiled, modules)),
        autocast=program.autocast if own is None else own.autocast,
        blocks=repeated_blocks(models[0]) if len(models) == 1 else (),
        head=_last_linear(models[0]) if len(models) == 1 else "",
        has_loss=program.loss is not None or (own is not None and own.loss is not None),
        trained_in_float32=any(each.requires_grad and each.dtype is torch.float32 for each in parameters),
        frozen_in_float32=any(not each.requires_grad and each.dtype is torch.float32 for each in parameters),
        trained_bytes=sum(each.nbytes for each in parameters if each.requires_grad),
        floats_in_batch=form == "other" or any(each.is_floating_point() for each in leaves),
        normalizes_batches=any(isinstance(each, _BATCH_NORMS) for each in modules),
        optimizers=-1 if optimizers is None else len(optimizers),
        optimizer=_described(optimizers[0]) if optimizers and len(optimizers) == 1 else None,
        untrained_modules=tuple(path for paths, _ in idle for path in paths),
        untrained_parameters=tuple(path for _, paths in idle for path in paths),
        expands=conf.expandable_segments,
        batch_form=form,
        splits=form != "other" and all(each.dim() and len(each) == program.batch_size for each in leaves),
        call=own.call if own is not None else _call(models[0], program, form) if len(models) == 1 else "",
    )


def _optimizers(program: Program) -> tuple[tuple[torch.optim.Optimizer, ...] | None, Mapping[int, int]]:
    """A program's optimizers, or what its factory makes of copies; and by the id of each copy that of its parameter.

    None: the factory does not take copies, or the model makes them where it is trained.
    """
    if _trains_itself(program) and program.make_optimizer is None and not program.optimizers:
        return None, {}
    if program.make_optimizer is None:
        return program.optimizers, {}
    copies = {
        id(each): nn.Parameter(torch.empty_like(each, device="meta"), requires_grad=each.requires_grad)
        for model in program.models.values()
        for each in model.parameters()
    }
    try:
        made: Any = program.make_optimizer(copies.values())
    except Exception:  # what is wrong with it, the run of the program will tell
        return None, {}
    found = tuple(made) if isinstance(made, (list, tuple)) else (made,)
    if not all(isinstance(each, torch.optim.Optimizer) for each in found):
        return None, {}
    return found, {id(copy): of for of, copy in copies.items()}


def _trains_itself(program: Program) -> bool:
    """Whether its model's own ``training_step`` is run, as a LightningModule's."""
    return program.step is None and program.loss is None and all(map(brings_training, program.models.values()))


def _described(optimizer: torch.optim.Optimizer) -> OptimizerFacts:
    kind = type(optimizer)
    signature = inspect.signature(kind)
    defaults = {name: each.default for name, each in signature.parameters.items()}
    options = {
        name: value for name, value in optimizer.defaults.items() if name in defaults and value != defaults[name]
    }
    is_plain = (
        getattr(torch.optim, kind.__name__, None) is kind
        and not optimizer.state
        and all(isinstance(value, (int, float, tuple, str, type(None))) for value in options.values())
    )
    return OptimizerFacts(
        kind=kind.__name__ if is_plain else "", options=tuple(options.items()), known=frozenset(defaults)
    )


def _form(batch: object) -> BatchForm:
    if is_made(batch):
        return "other"
    if type(batch) is torch.Tensor:
        return "tensor"
    if type(batch) in (tuple, list) and batch and all(type(each) is torch.Tensor for each in _sequence(batch)):
        return "sequence"
    if type(batch) is dict and batch and all(type(each) is torch.Tensor for each in batch.values()):
        return "dict" if all(isinstance(name, str) and name.isidentifier() for name in batch) else "other"
    return "other"


def _sequence(batch: Any) -> list[object]:
    return [*batch]


def _leaves(batch: Any, form: BatchForm) -> list[torch.Tensor]:
    if form == "tensor":
        return [batch]
    if form == "other":
        return []
    return [*(batch.values() if form == "dict" else batch)]


def _call(model: nn.Module, program: Program, form: BatchForm) -> str:
    batch: Any = program.batch
    takes_part = program.loss is not None
    if form == "tensor":
        return "model(batch)"
    if form == "sequence":
        most = positions_of(model) if takes_part else None
        if most is None or most >= len(batch):
            return "model(*batch)"
        return "model(batch[0])" if most == 1 else f"model(*batch[:{most}])"
    if form == "dict":
        known = keywords_of(model) if takes_part else None
        if known is None or known >= {*batch}:
            return "model(**batch)"
        return f"model({', '.join(f'{name}=batch[{name!r}]' for name in batch if name in known)})"
    return "call_model(model, batch)"


def _last_linear(model: nn.Module) -> str:
    found = [path for path, module in model.named_modules() if type(module) is nn.Linear]
    return found[-1] if found else ""
