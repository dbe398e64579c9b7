"""A training program, as a value: what was given to a verb, checked. Knows no engine, and nothing of how it is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from ..ranks.place import Place
    from .hooks import Hook
    from .parallel import Parallel


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """What a program's code becomes. Both texts find ``torch``, ``model`` (``models`` where there are several),
    ``loss``, ``loss_of``, ``call_model`` and ``to_cuda``.
    """

    on_cpu: str = ""
    """Runs before the models are moved to the device."""
    on_gpu: str = ""
    """Runs once they are there, and also finds ``optimizer`` (``optimizers`` where it is not one) and their
    ``parameters``. It may set ``optimizer`` anew, and make a ``train_step``."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A training program, as it was given to ``vramkit.estimate`` and checked there."""

    models: Mapping[str, torch.nn.Module]
    batch: object
    """A pytree of tensors and dataclasses, or a callable ``size -> batch``."""
    batch_size: int
    """Of the sample batch; 0: a callable makes the batches, or nothing in it has a dimension 0."""
    steps: int
    optimizers: tuple[torch.optim.Optimizer, ...] = ()
    make_optimizer: Callable[..., object] | None = None
    """Makes the optimizer from the parameters, once the models are on the device."""
    step: Callable[..., object] | None = None
    """The user's training step; None: the plain one."""
    loss: Callable[..., object] | None = None
    autocast: torch.dtype | None = None
    hooks: tuple[Hook, ...] = ()
    """On parameters and optimizers; put back where they arrive."""
    gradients: Literal["on", "off", "inference"] = "on"
    """Whether autograd was on where the estimate was asked for."""
    by_default_on_cuda: bool = False
    """``torch.set_default_device("cuda")`` was in force where the estimate was asked for."""
    places: tuple[Place, ...] = ()
    """The ranks of a distributed job that are predicted, each alone among its mirrors; empty: there is no job."""
    make_models: Callable[[], object] | None = None
    """Makes the models where they are trained, when the job is there; then none is sent."""
    parallel: Parallel | None = None
    """How the ranks of the job share the training; None: the program sets that up itself."""
    rewrite: Rewrite | None = None
    """Changes that are made where it runs."""


def functions_of(program: Program) -> tuple[object, ...]:
    """What the user wrote of a program; None where nothing was given."""
    return program.step, program.loss, program.make_optimizer, program.make_models, program.batch
