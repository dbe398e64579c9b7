"""The training loop that is predicted, in plain words: models to the device, then so many steps.

Every engine runs this. It knows batches, models and optimizers; nothing of how memory is recorded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import torch

from ..torch_internals import pytree
from ..torch_internals.modules import in_compiled
from ..torch_internals.sharded_state import offloads
from .batches import at_size, moved
from .hooks import put_back
from .objects import models_of
from .own_training import brings_training, configured, training_loss
from .program import Program
from .rewriting import Rewriting
from .written import written

MOVE_MODEL = "move the model to the device"


@dataclass
class Training:
    """One run of a program.

    Args:
        program: what to run.
        batch_size: 0: as the batch was given.
        move_batch: give the user's step its batch on the device; False: on the CPU, as a data loader makes it.
        device: where to train.
    """

    program: Program
    batch_size: int
    move_batch: bool
    device: str = "cuda"
    doing: str = MOVE_MODEL
    """What is going on, as the end of "was to ..."; for the text of an error."""
    _sample: list[object] = field(default_factory=list)
    _holds: list[object] = field(default_factory=list)
    _step: Callable[[object], object] | None = None

    def run(self, before_steps: Callable[[], object], after_step: Callable[[], object]) -> None:
        """Run it. What a training script holds to its end, the optimizer too, lives as long as this object does.

        Args:
            before_steps: called when the models are on the device, before there is an optimizer.
            after_step: called after each step.
        """
        if self.program.make_models is not None:
            self.doing = "make the model"
            made: Any = self.program.make_models()
            self.program = replace(self.program, models=models_of("vramkit.estimate was called", made))
            self.doing = MOVE_MODEL
        program = self.program
        rewriting = self._rewriting()
        if rewriting is not None:
            rewriting.on_cpu()
        if program.parallel is not None:
            self.doing = "make the model parallel"
            models = program.parallel.parallelized(program.models)
            self.program = program = replace(program, models=models)
            self.doing = MOVE_MODEL
        losses = [program.loss] if isinstance(program.loss, torch.nn.Module) else []
        for model in (*program.models.values(), *losses):
            if not self._is_in_place(model):
                model.to(self.device)
        self._move_states()
        before_steps()
        self.doing = MAKE
        self._step = step = program.step or self._plain_step(rewriting)
        if rewriting is not None and program.step is not None:
            optimizers, changed = rewriting.on_gpu(program.optimizers)
            if changed is not None:
                self._holds += optimizers
                self._step = step = changed
        with _mode(program.gradients), self._default_device(), put_back(program.hooks):
            for number in range(program.steps):
                self.doing = f"make the batch of step {number + 1} of {program.steps}"
                if program.step is not None and self.move_batch:
                    self._call(step, number, moved(self._batch(), self.device))
                else:
                    self._call(step, number, self._batch())
                after_step()

    def _is_in_place(self, model: torch.nn.Module) -> bool:
        """Whether a model is where it is trained. Sharded parameters that are in use can't be moved, not even there."""
        places = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
        here = torch.device(self.device)
        if here.index is None and any(place.type == "cuda" for place in places):
            here = torch.device(here.type, torch.cuda.current_device())
        is_given = self.program.parallel is None and self.program.make_models is None
        return places <= {here} or (is_given and offloads(model))

    def _default_device(self) -> AbstractContextManager[object]:
        return torch.device(self.device) if self.program.by_default_on_cuda else nullcontext()

    def _move_states(self) -> None:
        """What an optimizer made when it was made, to its parameters' device: Adagrad's sums, a fused one's steps."""
        for optimizer in self.program.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    state = optimizer.state.get(parameter, {})
                    for name, value in state.items():
                        if _belongs_to(parameter, group, name, value):
                            state[name] = value.to(self.device)

    def _batch(self) -> object:
        """The next batch: the sample again, or what the callable makes."""
        if not self._sample or callable(self.program.batch):
            self._sample.clear()  # the last one goes before the next is made
            self._sample.append(at_size(self.program.batch, self.batch_size))
        return self._sample[0]

    def _call(self, step: Callable[[object], object], number: int, batch: object) -> None:
        place = f"step {number + 1} of {self.program.steps}"
        self.doing = f"run {place}"
        try:
            step(batch)
        except BaseException:
            if isinstance(step, PlainStep):
                self.doing = f"{step.part} in {place}"
            raise

    def _rewriting(self) -> Rewriting | None:
        if self.program.rewrite is None:
            return None
        takes_part = self.program.loss is not None
        own = written(self.program.step)
        return Rewriting(
            self.program.rewrite,
            self.program,
            {"loss_of": loss_of, "call_model": partial(call, takes_part=takes_part)}
            | ({} if own is None else {"loss": own.loss}),
        )

    def _plain_step(self, rewriting: Rewriting | None) -> Callable[[object], object]:
        program = self.program
        [model] = program.models.values()
        optimizers: Sequence[torch.optim.Optimizer] = program.optimizers
        if program.make_optimizer is not None:
            parameters = chain.from_iterable(each.parameters() for each in program.models.values())
            made: Any = program.make_optimizer(parameters)
            optimizers = tuple(made) if isinstance(made, (list, tuple)) else (made,)
            for each in optimizers:
                if not hasattr(each, "step"):
                    raise TypeError(f"the optimizer's factory returned {type(each).__name__}")
        if rewriting is not None:
            optimizers, step = rewriting.on_gpu(optimizers)
            if step is not None:
                self._holds += optimizers
                return step
        if program.loss is None and brings_training(model):
            return OwnStep(model, optimizers or configured(model), None, program.autocast, self.device)
        return PlainStep(model, optimizers, program.loss, program.autocast, self.device)


def _belongs_to(parameter: torch.Tensor, group: Mapping[str, Any], name: str, value: object) -> bool:
    """Whether a part of an optimizer's state has to be where its parameter is."""
    if not isinstance(value, torch.Tensor):
        return False
    return bool(group.get("fused")) if name == "step" else value.shape == parameter.shape


@dataclass
class PlainStep:
    """The training step of a program that brings none of its own."""

    model: torch.nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    loss: Callable[..., Any] | None
    autocast: torch.dtype | None
    device: str
    part: str = ""
    """Which part of it runs, as the end of "was to ..."."""

    def __call__(self, batch: Any) -> None:
        """One step: the batch to the device, forward, loss, backward, optimizers, zero_grad."""
        self.part = MOVE
        batch = moved(batch, self.device)
        with self._autocast():
            self.part = CALL
            output = call(self.model, batch, takes_part=self.loss is not None)
            if self.loss is not None:
                self.part = LOSS
                loss = self.loss(output, batch)
            elif torch.is_grad_enabled():
                self.part = NO_LOSS
                loss = loss_of(output)
        if not torch.is_grad_enabled():
            return
        self.part = BACKWARD
        _check_value(loss)
        self.part = "run the backward"
        loss.backward()
        self.part = STEP
        for optimizer in self.optimizers:
            optimizer.step()
        for each in self.optimizers or (self.model,):
            each.zero_grad()

    def _autocast(self) -> AbstractContextManager[object]:
        return nullcontext() if self.autocast is None else torch.autocast(self.device, self.autocast)


class OwnStep(PlainStep):
    """The training step of a model that brings its own, in the order of Lightning's automatic optimization.

    Gradients are given back when the next ones come, after the forward, and not at the end of a step.
    """

    def __call__(self, batch: Any) -> None:
        """One step: the batch to the device, ``training_step``, zero_grad, backward, optimizers."""
        self.part = MOVE
        batch = moved(batch, self.device)
        with self._autocast():
            if not torch.is_grad_enabled():
                self.part = CALL
                call(self.model, batch, takes_part=False)
                return
            self.part = OWN
            loss = training_loss(self.model, batch)
        for each in self.optimizers or (self.model,):
            each.zero_grad()
        self.part = BACKWARD
        _check_value(loss)
        self.part = "run the backward"
        loss.backward()
        self.part = STEP
        for optimizer in self.optimizers:
            optimizer.step()


OWN = "run training_step"
MAKE, MOVE, CALL = "make the optimizer", "move the batch", "call the model"
LOSS, NO_LOSS, BACKWARD = "compute the loss", "find a loss in the output", "begin the backward"
STEP = "step the optimizer"
"""Parts of a run with the plain step, as the end of "was to ..."."""


def _check_value(loss: object) -> None:
    """Raises: TypeError for what no backward can begin at."""
    if not isinstance(loss, torch.Tensor):
        if not hasattr(loss, "backward"):
            raise TypeError(f"the loss is {type(loss).__name__}, and no tensor")
    elif loss.numel() != 1:
        raise TypeError(f"the loss has the shape {tuple(loss.shape)}, and is not one number")
    elif not loss.requires_grad:
        raise TypeError("the loss depends on nothing that requires a gradient")


def call(model: torch.nn.Module, batch: Any, *, takes_part: bool) -> Any:
    """The model's output for a batch: a sequence as positional arguments, a dict as keywords.

    Args:
        model: is called.
        batch: on the model's device.
        takes_part: a loss sees the batch too. Then a model that takes fewer arguments than the batch has gets the first
            ones, or those of a name that it knows; the others are targets.
    """
    if isinstance(batch, Mapping):
        names = {str(name) for name in batch}
        known = keywords_of(model) if takes_part else None
        return model(**{name: batch[name] for name in batch if known is None or name in known & names})
    if isinstance(batch, (tuple, list)):
        most = positions_of(model) if takes_part else None
        return model(*batch[:most])
    return model(batch)


def _parameters(model: torch.nn.Module) -> list[inspect.Parameter]:
    while (inner := in_compiled(model) or _module_of(model)) is not None:
        model = inner  # what was compiled or made parallel takes what is inside
    return list(inspect.signature(model.forward).parameters.values())


def _module_of(model: torch.nn.Module) -> torch.nn.Module | None:
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    return model.module if isinstance(model, parallel) else None


def keywords_of(model: torch.nn.Module) -> set[str] | None:
    """Names that a forward takes; None: any."""
    parameters = _parameters(model)
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return None
    return {each.name for each in parameters}


def positions_of(model: torch.nn.Module) -> int | None:
    """How many positional arguments a forward takes at most; None: any number."""
    parameters = _parameters(model)
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return None
    return sum(each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in parameters)


def loss_of(output: Any) -> torch.Tensor:
    """What to begin the backward with where no loss was given: ``output.loss``, the scalar itself, or the sum."""
    named = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(named, torch.Tensor):
        return named
    if isinstance(output, torch.Tensor):
        return output if output.dim() == 0 else output.sum()
    parts = list(_differentiable(output))
    if not parts:
        raise TypeError(f"the model's output, {type(output).__name__}, has no tensor to begin a backward with")
    total = parts[0].sum()
    for part in parts[1:]:
        total = total + part.sum()
    return total


def _differentiable(output: Any) -> Iterator[torch.Tensor]:
    for leaf in pytree.tree_leaves(dict(output) if isinstance(output, Mapping) else output):
        if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
            yield leaf


def _mode(gradients: str) -> AbstractContextManager[object]:
    if gradients == "on":
        return nullcontext()
    return torch.inference_mode() if gradients == "inference" else torch.no_grad()
