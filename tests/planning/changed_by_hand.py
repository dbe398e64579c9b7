"""A transformer and a CNN, and each change of a plan as a person would make it. No part of vramkit's is here.

As a script it trains those that are named, each as a fresh process would, and prints what ``vramkit.profile`` and torch
measured.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

ROWS = 8


@dataclass(frozen=True)
class Hand:
    """What a person changed."""

    every: int = 0
    """Each n-th block is checkpointed."""
    parts: int = 1
    loss_rows: int = 0
    autocast: torch.dtype | None = None
    scales: bool = False
    half: bool = False
    on_host: bool = False
    state_on_host: bool = False
    optimizer: Callable[[Any], torch.optim.Optimizer] = torch.optim.AdamW


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, dim=-1))
        x = x + F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
        return x + self.mlp(x)


class Words(nn.Module):
    """A small transformer; its first half may be left without an optimizer."""

    def __init__(self, hand: Hand = Hand(), width: int = 64, words: int = 3001) -> None:
        super().__init__()
        self.hand = hand
        self.words = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(5))
        self.head = nn.Linear(width, words)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens)
        for number, block in enumerate(self.blocks):
            if self.hand.every and number % self.hand.every == 0:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x if self.hand.loss_rows else self.head(x)


class ConvBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + F.relu(self.norm(self.conv(x)))


class Pictures(nn.Module):
    """A small CNN."""

    def __init__(self, hand: Hand = Hand()) -> None:
        super().__init__()
        self.hand = hand
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.stages = nn.Sequential(*(nn.Sequential(*(ConvBlock(32) for _ in range(2))) for _ in range(2)))
        self.head = nn.Linear(32, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        blocks = [block for stage in self.stages for block in stage]
        for number, block in enumerate(blocks):
            if self.hand.every and number % self.hand.every == 0:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        x = x.mean((2, 3))
        return x if self.hand.loss_rows else self.head(x)


def loss(output: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(output.flatten(0, -2), batch[1].flatten())


def batch_of(kind: type[nn.Module]) -> tuple[torch.Tensor, torch.Tensor]:
    if kind is Words:
        return torch.zeros(ROWS, 96, dtype=torch.long), torch.zeros(ROWS, 96, dtype=torch.long)
    return torch.zeros(ROWS, 3, 40, 40), torch.zeros(ROWS, dtype=torch.long)


@dataclass
class Trained:
    """A program that a person has changed."""

    model: nn.Module
    hand: Hand
    optimizer: torch.optim.Optimizer | None = None
    scaler: torch.amp.GradScaler | None = None

    def backward_of(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        hand, model = self.hand, self.model
        if hand.half and inputs.is_floating_point():
            inputs = inputs.to(torch.bfloat16)
        inputs, targets = inputs.to("cuda"), targets.to("cuda")
        with ExitStack() as around:
            if hand.on_host:
                around.enter_context(torch.autograd.graph.save_on_cpu(pin_memory=True))
            if hand.autocast is not None:
                around.enter_context(torch.autocast("cuda", hand.autocast))
            output = model(inputs)
            if hand.loss_rows:

                def of_rows(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
                    return loss(model.head(hidden), (hidden, targets))

                pieces = [*zip(output.split(hand.loss_rows), targets.split(hand.loss_rows), strict=True)]
                value = sum(checkpoint(of_rows, *piece, use_reentrant=False) for piece in pieces) / len(pieces)
            else:
                value = loss(output, (inputs, targets))
            if hand.parts > 1:
                value = value / hand.parts
        (value if self.scaler is None else self.scaler.scale(value)).backward()

    def __call__(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        if self.optimizer is None:  # the model is on the device now
            self.optimizer = self.hand.optimizer(self.model.parameters())
            self.scaler = torch.amp.GradScaler("cuda") if self.hand.scales else None
        rows = ROWS // self.hand.parts
        for inputs, targets in zip(*(each.split(rows) for each in batch), strict=True):
            self.backward_of(inputs, targets)
        if self.hand.state_on_host:
            self.move_state("cuda")
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.hand.state_on_host:
            self.move_state("cpu")
        self.optimizer.zero_grad()

    def move_state(self, device: str) -> None:
        assert self.optimizer is not None
        for parameter, state in self.optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                self.optimizer.state[parameter][name] = state[name].to(device)


def by_hand(kind: type[nn.Module], hand: Hand) -> Trained:
    model = kind(hand)
    if hand.half:
        model.to(torch.bfloat16)
    return Trained(model, hand)


def adamw(**options: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.AdamW(parameters, **options)


BF16, F16 = torch.bfloat16, torch.float16
ALONE: dict[str, Hand] = {
    "as it is": Hand(),
    "fused": Hand(optimizer=adamw(fused=True)),
    "foreach": Hand(optimizer=adamw(foreach=False)),
    "2 parts": Hand(parts=2),
    "8 parts": Hand(parts=8),
    "loss in parts": Hand(loss_rows=1),
    "all blocks": Hand(every=1),
    "every 2nd block": Hand(every=2),
    "bfloat16": Hand(autocast=BF16),
    "on the host": Hand(on_host=True),
    "state on the host": Hand(state_on_host=True),
    "half": Hand(half=True),
    "sgd": Hand(optimizer=lambda parameters: torch.optim.SGD(parameters, momentum=0.9, fused=True)),
    "adafactor": Hand(optimizer=lambda parameters: torch.optim.Adafactor(parameters, foreach=False)),
}
TOGETHER: dict[str, Hand] = {
    "parts, blocks, fused": Hand(parts=2, every=2, optimizer=adamw(fused=True)),
    "parts, loss, blocks, bfloat16": Hand(parts=2, loss_rows=1, every=1, autocast=BF16),
    "blocks, half, host": Hand(every=1, half=True, on_host=True),
}
ON_A_T4: dict[str, Hand] = {
    "float16": Hand(autocast=F16, scales=True),
    "float16, parts, fused": replace(Hand(autocast=F16, scales=True), parts=4, optimizer=adamw(fused=True)),
}
KINDS: dict[str, type[nn.Module]] = {"Words": Words, "Pictures": Pictures}


def _train(kind: str, name: str) -> list[int]:
    import vramkit

    trained = by_hand(KINDS[kind], {**ALONE, **TOGETHER, **ON_A_T4}[name])
    batch = batch_of(KINDS[kind])
    with vramkit.profile(trained.model, device="cuda") as measured:
        trained.model.to("cuda")
        for _ in range(3):
            trained(batch)
            measured.step()
    result = measured.result
    assert result.peak_allocated == torch.cuda.max_memory_allocated()
    return [result.peak_allocated, result.peak_reserved]


def _fresh(kind: str, name: str) -> list[int]:
    """As a process of its own would find it: CUDA has not begun in this one."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        with os.fdopen(writer, "w") as pipe:
            json.dump(_train(kind, name), pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        found: list[int] = json.load(pipe)
    os.waitpid(child, 0)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({name: _fresh(*name.split("/")) for name in sys.argv[1:]}))
