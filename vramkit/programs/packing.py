"""Programs by value: a model, its batch, optimizer and step as bytes that another process makes the same objects of.

Everything goes into one pickle, so that a step still closes over the very model and optimizer that are sent beside it.
Of tensors only shapes go, never a model's values: parameters and buffers arrive as zeros that take no memory, whatever
device they were on, ``meta`` included, and storages that were shared are shared again. Other tensors keep their values
up to 64 MiB each, because lengths and masks decide about sizes.

An optimizer arrives without its state, as a fresh process has none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..errors import UsageError
from . import device_names, hooks
from .by_value import modules_by_value
from .program import Program, functions_of
from .sending import Sender, tensors_of, trained_by

_OTHERS_NOTE = (
    "The optimizer has none of the model's parameters, which require gradients: was it made for this model, or for a "
    "copy of it?"
)


@dataclass(frozen=True)
class Parcel:
    """A program as bytes."""

    content: bytes
    notes: tuple[str, ...]
    """What had to be assumed, in sentences."""
    move_batch: bool
    """Some tensor of the batch was on a CUDA device: the user's step gets its batch there."""
    is_compiled: bool
    """Something in it comes from ``torch.compile``."""
    is_autotuned: bool
    """And is to choose its kernels by their times (``mode="max-autotune"``)."""
    models: tuple[str, ...]
    """Names of the models that were passed."""


def pack(program: Program, *, apart: bool = False) -> Parcel:
    """Make bytes of a program. Nothing of the user's is changed.

    Args:
        program: what to send.
        apart: it will be opened in this very process, so that functions must not go as names: they would find the
            user's own objects beside them.

    Raises:
        UsageError: something in it can't be sent, or its step uses nothing that was passed; the text says which part,
            and why.
    """
    with modules_by_value(program, apart=apart):
        sender = Sender(program)
        says_cpu = not torch.cuda.is_available() and any(map(device_names.is_used, functions_of(program)))
        if says_cpu:
            sender.notes[device_names.NOTE] = None
        if _trains_others(program):
            sender.notes[_OTHERS_NOTE] = None
        sender.notes.update(dict.fromkeys(hooks.notes(program.optimizers)))
        if program.hooks and not _can_be_sent(program, program.hooks):
            sent = tuple(hook for hook in program.hooks if _can_be_sent(program, hook))
            sender.notes[hooks.left_out(hook for hook in program.hooks if hook not in sent)] = None
            program = dataclasses.replace(program, hooks=sent)
        try:
            sender.dump((program, says_cpu))
        except Exception as error:  # whatever a user's __getstate__ raises
            raise _refusal(program, error) from error
    move = any(tensor.device.type == "cuda" for tensor in tensors_of(program.batch))
    return Parcel(
        content=sender.file.getvalue(),
        notes=tuple(sender.notes),
        move_batch=move,
        is_compiled=sender.is_compiled,
        is_autotuned=sender.is_autotuned,
        models=(*program.models,),
    )


def _trains_others(program: Program) -> bool:
    """Whether it has optimizers, and none of them has a parameter of its models, although these are not frozen."""
    own = [parameter for model in program.models.values() for parameter in model.parameters()]
    trained = {id(parameter) for parameter in trained_by(program)}
    is_frozen = not any(parameter.requires_grad for parameter in own)
    return bool(trained) and not is_frozen and trained.isdisjoint(map(id, own))


def _refusal(program: Program, error: Exception) -> UsageError:
    """What to say when a program can't be sent."""
    parts: Mapping[str, object] = {
        "model": program.make_models or program.models,
        "batch": program.batch,
        "optimizer": program.make_optimizer or program.optimizers,
        "loss": program.loss,
        "step": program.step,
    }
    part = next((name for name, value in parts.items() if not _can_be_sent(program, value)), "program")
    return UsageError(
        "vramkit.estimate was to run a training step",
        f"its {part} can't be sent: {type(error).__name__}: {error}",
        "The step runs in a process of its own, so that this one stays as it is",
        "Keep what can't be sent (open files, locks, loggers, iterators of a loader) out of what it uses, or let the "
        "step make it when it runs",
    )


def _can_be_sent(program: Program, part: object) -> bool:
    try:
        Sender(program).dump(part)
    except Exception:
        return False
    return True
