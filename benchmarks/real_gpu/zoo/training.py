"""Models that train for three steps, and every optimizer on one of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from .common import BF16, HALF, LAST, Part, Program, known, steps, x

PROGRAMS: dict[str, Program] = {}


def mlp(width: int = 1024) -> nn.Module:
    layers = (nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    return nn.Sequential(*layers).cuda()


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {"lr": 0.1}),
    "SGD with momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "SGD, one by one": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "foreach": False}),
    "SGD, fused": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "fused": True}),
    "Adam": (torch.optim.Adam, {}),
    "Adam, one by one": (torch.optim.Adam, {"foreach": False}),
    "Adam, fused": (torch.optim.Adam, {"fused": True}),
    "Adam, capturable": (torch.optim.Adam, {"capturable": True}),
    "AMSGrad": (torch.optim.Adam, {"amsgrad": True}),
    "AdamW": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "AdamW, fused": (torch.optim.AdamW, {"weight_decay": 0.1, "fused": True}),
    "Adafactor": (torch.optim.Adafactor, {}),
    "Adagrad": (torch.optim.Adagrad, {}),
    "Adadelta": (torch.optim.Adadelta, {}),
    "Adamax": (torch.optim.Adamax, {}),
    "NAdam": (torch.optim.NAdam, {}),
    "RAdam": (torch.optim.RAdam, {}),
    "RMSprop": (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    "Rprop": (torch.optim.Rprop, {}),
    "ASGD": (torch.optim.ASGD, {}),
}


def optimizers(names: tuple[str, ...]) -> Iterator[Part]:
    for name in names:
        kind, settings = OPTIMIZERS[name]
        model = mlp()
        optimizer = kind(model.parameters(), **settings)
        data, labels = x(128, 784, grad=False), known(128, high=10)
        for step, run in steps(
            model, optimizer, lambda model=model, data=data, labels=labels: F.cross_entropy(model(data), labels)
        ):
            yield f"{name}, {step}", run


def lbfgs() -> Iterator[Part]:
    model = mlp(64)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3, tolerance_grad=-1, tolerance_change=-1)
    data, labels = known(32, 784), known(32, high=10)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(data), labels)
        loss.backward()
        return loss

    for step in range(2):
        yield f"step {step}", lambda: optimizer.step(closure)


def clipped() -> Iterator[Part]:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    data, labels = x(128, 784, grad=False), known(128, high=10)
    for number in range(3):

        def accumulate() -> None:
            for _ in range(2):
                F.cross_entropy(model(data), labels).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

        yield f"step {number}", accumulate
    yield "average", lambda: torch.optim.swa_utils.AveragedModel(model).update_parameters(model)


class Bottleneck(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(inplace=True),
            nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(tensor) + tensor, inplace=True)


def residual() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1), Bottleneck(64, 32), nn.Conv2d(64, 256, 1, stride=2), Bottleneck(256, 64),
        Bottleneck(256, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 1000),
    ).cuda()  # fmt: skip


def images(layout: torch.memory_format, autocast: torch.dtype | None) -> Iterator[Part]:
    model = residual().to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    data = x(32, 3, 224, 224, grad=False).contiguous(memory_format=layout)
    labels = known(32, high=1000)

    def loss() -> torch.Tensor:
        with torch.autocast("cuda", autocast, enabled=autocast is not None):
            return F.cross_entropy(model(data), labels)

    yield from steps(model, optimizer, loss)


class UNet(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        pairs = list(zip((3, *widths), widths, strict=False))
        self.down = nn.ModuleList(self.double(a, b) for a, b in pairs)
        ups = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in ups)
        self.merge = nn.ModuleList(self.double(2 * b, b) for _, b in ups)
        self.head = nn.Conv2d(widths[0], 2, 1)

    @staticmethod
    def double(before: int, after: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU(),
            nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU(),
        )  # fmt: skip

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        kept = []
        for layer in self.down:
            tensor = layer(tensor)
            kept.append(tensor)
            tensor = F.max_pool2d(tensor, 2) if layer is not self.down[-1] else tensor
        kept.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            tensor = merge(torch.cat([up(tensor), kept.pop()], 1))
        return self.head(tensor)


def segmentation() -> Iterator[Part]:
    model = UNet().cuda()
    data, labels = x(4, 3, 128, 128, grad=False), known(4, 128, 128, high=2)
    yield from steps(model, torch.optim.Adam(model.parameters()), lambda: F.cross_entropy(model(data), labels))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1))

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        batch, length, width = tensor.shape
        parts = self.qkv(self.norms[0](tensor)).chunk(3, -1)
        query, key, value = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=0.1)
        tensor = tensor + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return tensor + self.mlp(self.norms[1](tensor))


class GPT(nn.Module):
    def __init__(self, layers: int = 4, width: int = 256, heads: int = 4, words: int = 5000) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(512, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight
        self.checkpointed = False

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tensor = self.words(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            tensor = checkpoint(block, tensor, use_reentrant=False) if self.checkpointed else block(tensor)
        return self.head(self.norm(tensor))


def language_loss(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def language(autocast: torch.dtype | None, *, checkpointed: bool = False) -> Iterator[Part]:
    model = GPT().cuda()
    model.checkpointed = checkpointed
    tokens = known(8, 257, high=5000)

    def loss() -> torch.Tensor:
        with torch.autocast("cuda", autocast, enabled=autocast is not None):
            return language_loss(model, tokens)

    yield from steps(model, torch.optim.AdamW(model.parameters()), loss)


def scaled() -> Iterator[Part]:
    model, scaler, tokens = GPT().cuda(), torch.amp.GradScaler("cuda"), known(8, 257, high=5000)
    optimizer = torch.optim.AdamW(model.parameters())
    for number in range(3):

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast("cuda", HALF):
                loss = language_loss(model, tokens)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()

        yield f"step {number}", step


def in_bfloat16() -> Iterator[Part]:
    model, tokens = GPT().cuda().to(BF16), known(8, 257, high=5000)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    yield from steps(model, optimizer, lambda: language_loss(model, tokens))


def written_word_by_word() -> Iterator[Part]:
    model, tokens = GPT().cuda().eval(), known(2, 16, high=5000)

    def generate() -> None:
        seen = tokens
        with torch.inference_mode():
            for _ in range(20):
                seen = torch.cat([seen, model(seen)[:, -1].argmax(-1, keepdim=True)], 1)

    yield "twenty words", generate


def checkpointed_parts() -> Iterator[Part]:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(512, 512), nn.GELU(), nn.Dropout(0.1)) for _ in range(8))).cuda()
    data = x(1024, 512, grad=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    yield from steps(model, optimizer, lambda: checkpoint_sequential(model, 4, data, use_reentrant=False).sum())


def saved_on_host() -> Iterator[Part]:
    model, data = mlp(), x(512, 784, grad=False)

    def loss() -> torch.Tensor:
        with torch.autograd.graph.save_on_cpu(pin_memory=True):
            return model(data).sum()

    yield from steps(model, torch.optim.SGD(model.parameters(), lr=0.1), loss)


_NAMES = tuple(OPTIMIZERS)
PROGRAMS["optimizers: SGD and Adam"] = lambda: optimizers(_NAMES[:11])
PROGRAMS["optimizers: others"] = lambda: optimizers(_NAMES[11:])
PROGRAMS["optimizers: LBFGS"] = lbfgs
PROGRAMS["training: MLP, accumulated and clipped"] = clipped
PROGRAMS["training: CNN"] = lambda: images(torch.contiguous_format, None)
PROGRAMS["training: CNN, channels last, autocast"] = lambda: images(LAST, HALF)
PROGRAMS["training: U-Net"] = segmentation
PROGRAMS["training: GPT"] = lambda: language(None)
PROGRAMS["training: GPT, autocast"] = lambda: language(BF16)
PROGRAMS["training: GPT, checkpointed"] = lambda: language(BF16, checkpointed=True)
PROGRAMS["training: GPT, scaled"] = scaled
PROGRAMS["training: GPT, bfloat16, fused"] = in_bfloat16
PROGRAMS["training: GPT, inference"] = written_word_by_word
PROGRAMS["training: checkpointed in four"] = checkpointed_parts
PROGRAMS["training: saved on the host"] = saved_on_host
