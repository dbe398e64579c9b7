"""More of the programs of ``advice_programs.py``: models that work in pairs, as twins, or as teacher and pupil; graphs
and tensors that a step hands to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn import functional


def convolutions(width: int = 32, blocks: int = 4, out: int = 10) -> nn.Sequential:
    """A network for images, on the device."""
    layers: list[nn.Module] = []
    for i in range(blocks):
        layers += [nn.Conv2d(width if i else 3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, out)).cuda()


def feed_forwards(blocks: int = 6, width: int = 512) -> nn.Sequential:
    """Blocks as a transformer has them, on the device."""
    return nn.Sequential(
        *(nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(blocks))
    ).cuda()


def train_on(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """Clears gradients, computes them and applies them."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def halves(optimizer: torch.optim.Optimizer, losses: Callable[[], torch.Tensor], *, is_split: bool) -> None:
    """A step on one batch, or on its two halves, whose gradients are accumulated."""
    optimizer.zero_grad()
    for _ in range(1 + is_split):
        (losses() / (1 + is_split)).backward()
    optimizer.step()


def twins(change: str) -> object:
    """An encoder of two images, and one backward of how far they are apart."""
    encoder, count = convolutions(32, 4, 64), 16 if change else 32
    optimizer = torch.optim.Adam(encoder.parameters())

    def loss() -> torch.Tensor:
        first, second = (torch.randn(count, 3, 64, 64, device="cuda") for _ in range(2))
        return functional.pairwise_distance(encoder(first), encoder(second)).pow(2).mean()

    for _ in range(3):
        halves(optimizer, loss, is_split=bool(change))
    return encoder


class _Distilled(nn.Module):
    def __init__(self, *, detaches: bool, without_graph: bool) -> None:
        super().__init__()
        self.pupil, self.teacher = feed_forwards(2), feed_forwards(8)
        self.detaches, self.without_graph = detaches, without_graph

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad() if self.without_graph else nullcontext():
            target = self.teacher(batch)
        target = target.detach() if self.detaches else target
        return functional.mse_loss(self.pupil(batch), target)


def _distill(model: nn.Module, trained: nn.Module) -> object:
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    for _ in range(3):
        train_on(optimizer, model(torch.randn(2048, 512, device="cuda")))
    return model


def inner_teacher(change: str) -> object:
    """A teacher inside of the model that is trained, whose output is detached."""
    model = _Distilled(detaches=True, without_graph=bool(change))
    return _distill(model, model.pupil)


def trained_teacher(change: str) -> object:
    """The same, whose output is not detached: it gets gradients that nobody clears."""
    model = _Distilled(detaches=False, without_graph=bool(change))
    return _distill(model, model.pupil)


def target(change: str, *, detaches: bool = True) -> object:
    """Features of what is aimed at, made with gradients as those of what is trained."""
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 3, 3, padding=1)).cuda()
    features = convolutions(32, 6, 16)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        images = torch.randn(16, 3, 64, 64, device="cuda")
        with torch.no_grad() if change else nullcontext():
            wanted = features(images)
        train_on(optimizer, functional.mse_loss(features(model(images)), wanted.detach() if detaches else wanted))
    return model


def retained(change: str) -> object:
    """A graph that each backward keeps, though nothing uses it again."""
    model = feed_forwards(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        loss = model(torch.randn(2048, 512, device="cuda")).pow(2).mean()
        optimizer.zero_grad()
        loss.backward(retain_graph=not change)
        optimizer.step()
    return model


def probabilities(change: str) -> object:
    """What is computed of each step's output, kept for a metric at the end."""
    model, found = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 4096)).cuda(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(10):
        output = model(torch.randn(1024, 512, device="cuda"))
        train_on(optimizer, output.pow(2).mean())
        probability = output.softmax(1)
        found.append(probability.detach().cpu() if change else probability)
    return found


def replay_buffer(change: str) -> object:
    """Observations that are kept on the device, of which each step uses one."""
    model, buffer = feed_forwards(2), list[torch.Tensor]()
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(12):
        seen = torch.randn(4096, 512, device="cuda")
        buffer.append(seen.cpu() if change else seen)
        with torch.no_grad():
            model(seen)
        batch = buffer[step // 2].cuda()
        train_on(optimizer, model(batch[:256]).pow(2).mean())
    return buffer


class _Scores(nn.Module):
    def __init__(self, width: int = 256, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.inside, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key, value = self.inside(hidden).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + mask
        return hidden + self.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


def added_mask(change: str) -> object:
    """Attention written by hand, which adds a float32 mask to its scores under autocast."""
    layers = nn.ModuleList(_Scores() for _ in range(4)).cuda()
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.1)
    for _ in range(3):
        hidden = torch.randn(8, 512, 256, device="cuda")
        mask = torch.zeros(8, 1, 512, 512, dtype=torch.float16 if change else torch.float32, device="cuda")
        with torch.autocast("cuda", torch.float16):
            for layer in layers:
                hidden = layer(hidden, mask)
        train_on(optimizer, hidden.float().pow(2).mean())
    return layers


def norms(change: str) -> object:
    """Blocks that end in a norm: under autocast the next layer keeps a copy of what that returns."""
    blocks = [(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512), nn.LayerNorm(512)) for _ in range(4)]
    model = nn.Sequential(*(nn.Sequential(*block) for block in blocks)).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        with torch.autocast("cuda", torch.float16, enabled=bool(change)):
            loss = model(torch.randn(4096, 512, device="cuda")).pow(2).mean()
        train_on(optimizer, loss)
    return model
