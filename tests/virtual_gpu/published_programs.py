"""Programs whose peaks others have published, written anew from what is said of them, as arguments of an estimate.

What a program still holds while it goes on is part of it: a variable that is overwritten, logits of the step before,
gradients that are zeroed late. Each of those that measured several iterations is one step here.
"""

from __future__ import annotations

from typing import Any

import torch
from counterfactuals import Classifier, search
from mingpt import LARGE, MinGPT, Trainer
from nanogpt import Loop, NanoGPT
from programs import LanguageModel, LoopedAdamW, cross_entropy
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential
from transposed_model import LARGEST, AdamW, TransposedModel, indexed_cross_entropy

Program = dict[str, Any]
"""Arguments of ``vramkit.estimate``."""


class Product(nn.Module):
    """A weight of shape (1024, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1024, 32))


def products(rows: int) -> Program:
    """Two iterations of 256 matrices, ``rows`` at a time; each part overwrites the one before."""
    model = Product()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step(matrices: torch.Tensor) -> None:
        for half in matrices.split(256):
            optimizer.zero_grad()
            for part in half.split(rows):
                x = part.to("cuda")
                y = x.matmul(model.weight)
                loss = y.sum()
                loss.backward()
            optimizer.step()

    return {"model": model, "batch": torch.zeros(512, 32, 1024), "optimizer": optimizer, "step": step, "steps": 1}


def sequential(checkpointed_only: bool) -> Program:
    """Three wide layers: checkpointed in two segments, and then, beside copies of those gradients, without."""
    model = nn.Sequential(
        nn.Linear(1000, 40000), nn.ReLU(), nn.Linear(40000, 1000), nn.ReLU(), nn.Linear(1000, 5), nn.ReLU()
    )

    def step(x: torch.Tensor) -> None:
        out = checkpoint_sequential([*model], 2, x.requires_grad_())
        model.zero_grad()
        out.sum().backward()
        if checkpointed_only:
            return
        kept = [out.detach().clone(), *(parameter.grad.clone() for parameter in model.parameters())]
        x = x.clone().detach_()
        out = model(x)
        kept.append(out.detach().clone())
        model.zero_grad()
        out.sum().backward()

    return {"model": model, "batch": torch.zeros(10, 1000, device="cuda"), "step": step, "steps": 1}


# -- language models ---------------------------------------------------------------------------------------------------


def language_model(length: int, size: dict[str, int], *, autocast: bool = False) -> Program:
    """Batches of 4, of which five wait on the device; the optimizer makes its state anew in every step."""
    model = LanguageModel(length=length, **size)
    optimizer = LoopedAdamW(model.parameters())

    def step(waiting: tuple[torch.Tensor, torch.Tensor]) -> None:
        x, y = (each[0].clone() for each in waiting)
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            logits = model(x)
            loss = cross_entropy(logits, y)
        loss.backward()
        optimizer.step()

    return {
        "model": model,
        "batch": (_tokens(5, 4, length), _tokens(5, 4, length)),
        "optimizer": optimizer,
        "step": step,
    }


def inference(length: int, size: dict[str, int], *, waiting: int = 0) -> Program:
    """Batches of 4, of which some wait on the device; to be estimated without gradients."""
    model = LanguageModel(length=length, **size)
    if not waiting:
        return {"model": model, "batch": _tokens(4, length)}

    def step(waiting: torch.Tensor) -> None:
        x = waiting[0].clone()
        model(x)

    return {"model": model, "batch": _tokens(waiting, 4, length), "step": step}


def _tokens(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.long, device="cuda")


def mingpt(size: dict[str, int] = LARGE) -> Program:
    """minGPT's trainer with batches of 32."""
    with torch.device("meta"):
        trainer = Trainer(MinGPT(**size))
    batch = tuple(torch.zeros(32, size["length"], dtype=torch.long) for _ in range(2))
    return {"model": trainer.model, "batch": batch, "optimizer": trainer.optimizer, "step": trainer.run}


def largest(length: int = 128) -> Program:
    """The first full step of the model with 3 thousand million parameters; the tokens are the targets."""
    model = TransposedModel(length=length, **LARGEST)
    optimizer = AdamW(model.parameters())

    def step(tokens: torch.Tensor) -> None:
        logits = model(tokens)
        loss = indexed_cross_entropy(logits, tokens)
        loss.backward()
        optimizer.step()

    return {"model": model, "batch": _tokens(4, length), "optimizer": optimizer, "step": step, "steps": 1}


def nanogpt() -> Program:
    """nanoGPT's loop with batches of 12 times 1024 tokens: two steps."""
    model = NanoGPT()
    loop = Loop(model)
    batch = tuple(torch.zeros(12, 1024, dtype=torch.long) for _ in range(2))
    return {"model": model, "batch": batch, "optimizer": loop.optimizer, "step": loop.step, "steps": 2}


def counterfactual() -> Program:
    """The label of an image, and the search for another image."""
    model = Classifier()

    def step(image: torch.Tensor) -> None:
        search(model, image, model(image.to("cuda")))

    return {"model": model, "batch": torch.zeros(1, 30, 256, 256), "step": step, "steps": 1}
