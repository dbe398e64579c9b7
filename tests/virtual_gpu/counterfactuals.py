"""A search for an image that a trained network takes for something else, written anew: cuDNN, anomaly mode, Adam.

The weights are frozen; what is trained is the image. How names hold what they hold is part of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from programs import Record
from torch import nn

from vramkit import GPU

CARD = GPU(name="tu102", memory=24 << 30, capability=(7, 5), multiprocessors=72)
"""What the recording's reductions show: a Turing card of 72 processors, such as the Quadro RTX 6000."""
EPOCHS = 10
Image = torch.Tensor


class Classifier(nn.Module):
    """Three convolutions with batch norm, each halved, a pool over what is left, three linear layers and an output."""

    def __init__(self, channels: int = 30, length: int = 256) -> None:
        super().__init__()
        self.convolutions, self.norms, self.linears = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for wider in (16, 32, 64):
            self.convolutions.append(nn.Conv2d(channels, wider, 3, padding="same"))
            self.norms.append(nn.BatchNorm2d(wider))
            channels = wider
        for features in (200, 100, 20):
            self.linears.append(nn.Linear(channels, features))
            channels = features
        self.left = length // 8
        self.out = nn.Linear(channels, 1)
        self.requires_grad_(False)

    def forward(self, x: Image) -> torch.Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = norm(torch.relu(convolution(x)))
            x = F.max_pool2d(x, 2)
        x = F.max_pool2d(x, self.left)
        x = x.flatten(1)
        for linear in self.linears:
            x = torch.relu(linear(F.dropout(x, 0.2, self.training)))
        return self.out(x)


def _far(image: Image, other: Image) -> torch.Tensor:
    return ((image - other) ** 2).mean()


def _unlike(label: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (label - other) ** 2


def _loss(label: torch.Tensor, found: torch.Tensor, image: Image, changed: Image) -> torch.Tensor:
    distance, difference = _far(changed, image), _unlike(found, label)
    loss = distance - difference
    del difference, distance  # as CPython up to 3.10 lets the operands of a subtraction go: the right one first
    return loss


def search(model: Classifier, image: Image, label: torch.Tensor) -> list[object]:
    """Change an image that is on the host, step by step; returns what it holds after the last one."""
    changed = image + torch.randn_like(image)
    image, changed = image.to("cuda"), changed.to("cuda").requires_grad_()
    optimizer = torch.optim.Adam([changed], lr=0.005)
    with torch.autograd.set_detect_anomaly(True):
        for _ in range(EPOCHS):
            found = model(changed)
            loss = _loss(label, found, image, changed)
            image_loss = _far(changed, image).detach()
            label_loss = -_unlike(found, label).detach()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return [image, changed, optimizer, found, loss, image_loss, label_loss]


def counterfactual(record: Record) -> None:
    """The search, after the label was found."""
    model = Classifier().to("cuda")
    image = torch.zeros(1, 30, 256, 256)
    label = model(image.to("cuda"))
    with record():
        _held = search(model, image, label)
