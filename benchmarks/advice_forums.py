"""More of the programs of ``advice_programs.py``: kinds of training that people ask about, each with a usual fault."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from advice_pairs import convolutions, feed_forwards, train_on
from torch import nn
from torch.nn import functional

WIDTH = 512


def momentum_contrast(change: str) -> object:
    """An encoder of keys that runs with gradients, after that of the queries; a queue has keys with their graphs."""
    queries, keys, queue = convolutions(32, 4, 64), convolutions(32, 4, 64), torch.randn(4096, 64, device="cuda")
    optimizer = torch.optim.SGD(queries.parameters(), lr=0.1)
    for _ in range(5):
        query = functional.normalize(queries(torch.randn(16, 3, 64, 64, device="cuda")))
        with torch.no_grad() if change else nullcontext():
            key = functional.normalize(keys(torch.randn(16, 3, 64, 64, device="cuda")))
        same = (query * key.detach()).sum(1, keepdim=True)
        scores = torch.cat([same, query @ queue.detach().t()], 1)
        train_on(optimizer, functional.cross_entropy(scores, torch.zeros(16, dtype=torch.long, device="cuda")))
        queue = torch.cat([key, queue])[:4096]
    return queries, keys, queue


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)) for _ in range(2)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + self.second(self.first(images))


def latents(change: str) -> object:
    """An encoder of images that another model's training is to have no part of, with residual blocks."""
    down = nn.Conv2d(32, 32, 3, stride=2, padding=1)
    encoder = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), _Residual(32), down, _Residual(32), nn.Conv2d(32, 4, 1))
    encoder, model = encoder.cuda(), nn.Sequential(nn.Conv2d(4, 64, 1), _Residual(64), nn.Conv2d(64, 4, 1)).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        with torch.no_grad() if change else nullcontext():
            latent = encoder(torch.randn(8, 3, 128, 128, device="cuda"))
        noise = torch.randn_like(latent)
        train_on(optimizer, functional.mse_loss(model(latent + noise), noise))
    return encoder, model


def _likelihood(model: nn.Module, words: torch.Tensor) -> torch.Tensor:
    """Of each row of words; its logits are there until it is known."""
    logits = model(words)
    return logits[:, :-1].log_softmax(-1).gather(2, words[:, 1:, None]).squeeze(2).sum(1)


def reference(change: str) -> object:
    """Preferences: a reference model that runs with gradients."""
    policy, judge = (nn.Sequential(nn.Embedding(8000, 128), feed_forwards(2, 128), nn.Linear(128, 8000)) for _ in "ab")
    policy, judge = policy.cuda(), judge.cuda()
    optimizer = torch.optim.AdamW(policy.parameters())
    for _ in range(3):
        better, worse = (torch.zeros(4, 256, dtype=torch.long, device="cuda") for _ in range(2))
        margin = _likelihood(policy, better) - _likelihood(policy, worse)
        with torch.no_grad() if change else nullcontext():
            before = _likelihood(judge, better) - _likelihood(judge, worse)
        train_on(optimizer, -functional.logsigmoid(margin - before).mean())
    return policy, judge


def rendered(change: str) -> object:
    """An image that is made in parts, with gradients, after every third step, and compared."""
    model = nn.Sequential(nn.Linear(64, 256), *(nn.Linear(256, 256), nn.ReLU()) * 3, nn.Linear(256, 3)).cuda()
    optimizer, image = torch.optim.Adam(model.parameters()), torch.zeros(0)
    for step in range(6):
        train_on(optimizer, model(torch.randn(4096, 64, device="cuda")).pow(2).mean())
        if step % 3 == 2:
            with torch.no_grad() if change else nullcontext():
                image = torch.cat([model(torch.randn(4096, 64, device="cuda")) for _ in range(8)])
            image.pow(2).mean().item()
    return image


class _Normed(nn.Module):
    def __init__(self, *, detaches: bool) -> None:
        super().__init__()
        self.layer, self.detaches = nn.Linear(1024, 1024), detaches
        self.spread: torch.Tensor | float = 0.0

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        rows = self.layer(rows)
        spread = (rows - rows.mean(0)).pow(2).mean(0)
        self.spread = 0.9 * self.spread + 0.1 * (spread.detach() if self.detaches else spread)
        return functional.relu(rows)


def running_average(change: str) -> object:
    """A statistic of each layer, averaged over the steps with all of their graphs."""
    model = nn.Sequential(*(_Normed(detaches=bool(change)) for _ in range(3))).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(10):
        train_on(optimizer, model(torch.randn(2048, 1024, device="cuda")).pow(2).mean())
    return model


def numpy_target(change: str) -> object:
    """A target that comes from NumPy: the whole loss is in float64."""
    model = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 4096)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        wanted = torch.from_numpy(np.zeros((2048, 4096), np.float32 if change else np.float64)).cuda()
        train_on(optimizer, (model(torch.randn(2048, 256, device="cuda")) - wanted).pow(2).mean())
    return model


class _Metric:
    """As those that need all predictions to come to a number."""

    def __init__(self) -> None:
        self.predictions: list[torch.Tensor] = []

    def update(self, scores: torch.Tensor, device: str) -> None:
        self.predictions.append(scores.sigmoid().to(device))


def metric(change: str) -> object:
    """A metric that has all predictions on the device."""
    model, found = nn.Sequential(nn.Linear(WIDTH, 1024), nn.ReLU(), nn.Linear(1024, 2000)).cuda(), _Metric()
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(14):
        scores = model(torch.randn(1024, WIDTH, device="cuda"))
        train_on(optimizer, functional.softplus(scores).mean())
        found.update(scores.detach(), "cpu" if change else "cuda")
    return found
