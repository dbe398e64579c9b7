"""Training programs that are predicted, and the same run by a process of its own, in words that vramkit has no part in.

``PROGRAMS`` holds what goes into ``vramkit.estimate``; ``run_as_users_do`` trains with it as a script would.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from workloads import GPT, LSTMClassifier, images, sequences, tokens

Program = dict[str, Any]
"""Arguments of ``vramkit.estimate``."""


def class_loss(output: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(output.flatten(0, -2), batch[1].flatten())


def run_as_users_do(program: Program, steps: int = 3) -> tuple[int, int]:
    """Train on the CUDA device; return the peaks of allocated and of reserved memory."""
    program["model"].to("cuda")
    train_step = step_of(program)
    for _ in range(steps):
        train_step()
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def step_of(program: Program) -> Callable[[], object]:
    """One training step on its batch; the model is on the CUDA device already."""
    model, batch, step = program["model"], program["batch"], program.get("step")
    if step is not None:
        return lambda: step(batch)
    optimizer = program["optimizer"]
    if not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = optimizer(model.parameters())
    autocast = program.get("autocast")

    def train_step(images: torch.Tensor, labels: torch.Tensor) -> None:
        images, labels = images.to("cuda"), labels.to("cuda")
        with torch.autocast("cuda", autocast) if autocast else nullcontext():
            output = model(images)
            loss = program["loss"](output, (images, labels))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return lambda: train_step(*batch)


class Conv1dNet(nn.Module):
    """Convolutions over feature sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(128, 256, 5, padding=2), nn.BatchNorm1d(256), nn.ReLU(), nn.Conv1d(256, 256, 5, padding=2),
            nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x.transpose(1, 2)).mean(-1))


class GRUClassifier(nn.Module):
    """cuDNN's GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(128, 192, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(384, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(x)[0][:, -1])


class UNet(nn.Module):
    """Two levels with group norm and a skip."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()

        def twice(inside: int, outside: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(inside, outside, 3, padding=1), nn.GroupNorm(8, outside), nn.SiLU(),
                nn.Conv2d(outside, outside, 3, padding=1), nn.GroupNorm(8, outside), nn.SiLU(),
            )  # fmt: skip

        self.down, self.middle, self.up = twice(3, width), twice(width, 2 * width), twice(2 * width, width)
        self.grow = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.down(x)
        grown = self.grow(self.middle(F.max_pool2d(first, 2)))
        return self.head(self.up(torch.cat([first, grown], 1)).mean((2, 3)))


def _plain(
    model: nn.Module,
    make_batch: Callable[[], object],
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    **more: Any,
) -> Program:
    return {"model": model, "batch": make_batch(), "optimizer": optimizer, "loss": class_loss, **more}


def _torchvision(name: str, count: int) -> Program:
    import torchvision

    return _plain(getattr(torchvision.models, name)(), images(count))


def small_gpt(**settings: Any) -> GPT:
    return GPT(layers=4, width=256, heads=4, vocabulary=8192, length=256, **settings)


def parametrized() -> Program:
    """Layers with parametrizations, whose classes torch made for them."""
    norms = nn.utils.parametrizations
    model = nn.Sequential(
        norms.weight_norm(nn.Linear(512, 1024)), nn.ReLU(), norms.spectral_norm(nn.Linear(1024, 256)), nn.ReLU(),
        norms.spectral_norm(norms.weight_norm(nn.Linear(256, 10))),
    )  # fmt: skip
    batch = torch.zeros(64, 512), torch.zeros(64, dtype=torch.long)
    return {"model": model, "batch": batch, "optimizer": torch.optim.Adam(model.parameters()), "loss": class_loss}


def _with_optimizer(make: Callable[..., torch.optim.Optimizer]) -> Program:
    return _plain(small_gpt(), tokens(4, 256), make)


def frozen_backbone() -> Program:
    import torchvision

    model = torchvision.models.resnet18()
    model.requires_grad_(False)
    model.fc = nn.Linear(512, 10)
    return _plain(model, images(16), lambda parameters: torch.optim.Adam(p for p in parameters if p.requires_grad))


def scaled() -> Program:
    """A step of the user's own: autocast to fp16 and a scaler. It makes the optimizer before the model is moved."""
    model = small_gpt()
    optimizer = torch.optim.AdamW(model.parameters())
    scaler: list[torch.amp.GradScaler] = []

    def step(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        if not scaler:
            scaler.append(torch.amp.GradScaler("cuda"))
        x, y = (each.to("cuda") for each in batch)
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = class_loss(model(x), (x, y))
        scaler[0].scale(loss).backward()
        scaler[0].unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler[0].step(optimizer)
        scaler[0].update()
        return loss

    return {"model": model, "batch": tokens(4, 256)(), "optimizer": optimizer, "step": step}


def accumulating() -> Program:
    """A step of the user's own that accumulates the gradients of four parts of its batch."""
    model = small_gpt()
    optimizer = torch.optim.AdamW(model.parameters())

    def step(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        for x, y in zip(batch[0].chunk(4), batch[1].chunk(4), strict=True):
            x, y = x.to("cuda"), y.to("cuda")
            class_loss(model(x), (x, y)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"model": model, "batch": tokens(8, 256)(), "optimizer": optimizer, "step": step}


def latents() -> Program:
    """A step of the user's own that trains what no model has, on the device that this process has."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 3072)).requires_grad_(False).to(device)
    latent = torch.zeros(512, 256, device=device, requires_grad=True)
    prompt = nn.Parameter(torch.zeros(256, device=device))
    optimizer = torch.optim.Adam([latent, prompt])

    def step(batch: torch.Tensor) -> None:
        loss = (model(latent + prompt) - batch.to("cuda")).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"model": model, "batch": torch.zeros(512, 3072), "optimizer": optimizer, "step": step}


def penalised() -> Program:
    """A critic with a gradient penalty: the backward's own nodes are part of what the second backward runs."""
    critic = nn.Sequential(nn.Linear(1024, 512), nn.LeakyReLU(0.2), nn.Linear(512, 1))
    optimizer = torch.optim.Adam(critic.parameters())

    def step(batch: torch.Tensor) -> None:
        real, made = (each.to("cuda") for each in batch.chunk(2))
        mixed = (real * 0.3 + made * 0.7).requires_grad_()
        (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
        loss = critic(made).mean() - critic(real).mean() + 10 * ((slope.norm(2, 1) - 1) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return {"model": critic, "batch": torch.zeros(512, 1024), "optimizer": optimizer, "step": step}


PROGRAMS: dict[str, Callable[[], Program]] = {
    "resnet18": lambda: _torchvision("resnet18", 16),
    "resnet50": lambda: _torchvision("resnet50", 8),
    "mobilenet_v3_small": lambda: _torchvision("mobilenet_v3_small", 16),
    "vit_b_16": lambda: _torchvision("vit_b_16", 4),
    "gpt fp32": lambda: _plain(GPT(), tokens(4, 512)),
    "gpt autocast bf16": lambda: _plain(GPT(), tokens(4, 512), autocast=torch.bfloat16),
    "gpt fp16, scaler, clipping": scaled,
    "gpt accumulating": accumulating,
    "gradient penalty": penalised,
    "gpt checkpointed": lambda: _plain(GPT(checkpointed="non-reentrant"), tokens(4, 512)),
    "gpt checkpointed, reentrant": lambda: _plain(GPT(checkpointed="reentrant"), tokens(4, 512)),
    "gpt dropout": lambda: _plain(GPT(dropout=0.1), tokens(4, 512)),
    "lstm": lambda: _plain(LSTMClassifier(), sequences(32)),
    "gru": lambda: _plain(GRUClassifier(), sequences(32)),
    "conv1d": lambda: _plain(Conv1dNet(), sequences(32)),
    "u-net": lambda: _plain(UNet(), images(4)),
    "frozen backbone": frozen_backbone,
    "sgd": lambda: _with_optimizer(lambda p: torch.optim.SGD(p, lr=0.1)),
    "sgd, momentum": lambda: _with_optimizer(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "adam": lambda: _with_optimizer(torch.optim.Adam),
    "adamw, foreach": lambda: _with_optimizer(lambda p: torch.optim.AdamW(p, foreach=True)),
    "adamw, for-loop": lambda: _with_optimizer(lambda p: torch.optim.AdamW(p, foreach=False)),
    "adamw, fused": lambda: _with_optimizer(lambda p: torch.optim.AdamW(p, fused=True)),
    "adafactor": lambda: _with_optimizer(torch.optim.Adafactor),
    "adagrad": lambda: _with_optimizer(torch.optim.Adagrad),
    "rmsprop": lambda: _with_optimizer(torch.optim.RMSprop),
}
"""By name; each makes its program anew."""
