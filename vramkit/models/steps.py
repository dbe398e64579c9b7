"""One step with a model that is known by its name: of training, of a forward, of generating. Each is a plain script's.

Knows no library of models. An object of these classes is the ``step`` of ``vramkit.estimate``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from ..programs.written import Written
from ..torch_internals.modules import is_compiled

Loss = Callable[[Any, Any], torch.Tensor]
Inputs = Callable[[Any], Any]
"""Moves a batch to the GPU, as what a model is called with: a dict of keywords, or (images, targets)."""


def on_cuda(batch: Any) -> Any:
    """A dict or a tuple of tensors, on the GPU."""
    if isinstance(batch, Mapping):
        return {name: tensor.to("cuda") for name, tensor in batch.items()}
    return tuple(tensor.to("cuda") for tensor in batch)


def model_loss(output: Any, batch: object) -> torch.Tensor:
    """The loss that a model computed from the labels in its batch."""
    loss: torch.Tensor = output.loss
    return loss


@dataclass(eq=False)
class TrainingStep:
    """Batch to the device, forward, loss, backward (as often as gradients are accumulated), optimizer, zero_grad.

    Batch and loss live to the step's end, as local variables do; the model's output only until there is a loss.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss
    autocast: torch.dtype | None
    accumulate: int
    inputs: Inputs = on_cuda
    shifted: bool = False
    """The model's own loss is that of the next word: the cross entropy of its logits and the labels after them."""
    scaler: torch.amp.GradScaler | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.autocast is torch.float16:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that there is no CUDA here, where nothing is trained
                self.scaler = torch.amp.GradScaler("cuda")

    @property
    def written(self) -> Written | None:
        """The step as source; None: its batch is moved in a way of its own, or its model is compiled."""
        if self.inputs is not on_cuda or is_compiled(self.model):
            return None
        if self.loss is model_loss:
            call, value, loss = "model(**batch)", "model(**batch).loss", None
        else:
            call, value, loss = "model(batch[0])", "loss(model(batch[0]), batch)", self.loss
        return Written(
            call=call,
            value=value,
            loss=loss,
            autocast=self.autocast,
            accumulate=self.accumulate,
            shifted=self.shifted,
        )

    def __call__(self, batch: Any) -> None:
        """Train on one batch, on the CPU or the GPU."""
        for _ in range(self.accumulate):
            given = self.inputs(batch)
            with _autocast(self.autocast):
                loss = self.loss(_called(self.model, given), given)
            if self.accumulate > 1:
                loss = loss / self.accumulate
            if self.scaler is not None:
                loss = self.scaler.scale(loss)
            loss.backward()  # type: ignore[no-untyped-call] # torch's
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad()


@dataclass(eq=False)
class ForwardStep:
    """Batch to the device, and a forward without gradients."""

    model: torch.nn.Module
    autocast: torch.dtype | None
    inputs: Inputs = on_cuda

    def __call__(self, batch: Any) -> None:
        """Use one batch."""
        with torch.no_grad(), _autocast(self.autocast):
            given = self.inputs(batch)
            _called(self.model, given)


@dataclass(eq=False)
class GenerationStep:
    """Batch to the device, and ``generate()``: the prompt, then one token after the other, keys and values cached."""

    model: torch.nn.Module
    autocast: torch.dtype | None
    settings: Mapping[str, object]
    """Keyword arguments of ``generate``."""
    inputs: Inputs = on_cuda

    def __call__(self, batch: Any) -> None:
        """Answer one batch of prompts."""
        with _autocast(self.autocast):
            given = self.inputs(batch)
            self.model.generate(**given, **self.settings)  # type: ignore[operator] # torch can't know it


def _autocast(dtype: torch.dtype | None) -> AbstractContextManager[object]:
    return nullcontext() if dtype is None else torch.autocast("cuda", dtype)


def _called(model: torch.nn.Module, batch: Any) -> Any:
    """A model's output: of a dict as keywords, of (images, targets) for the images, of lists of both for both."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0]) if isinstance(batch[0], torch.Tensor) else model(*batch)
