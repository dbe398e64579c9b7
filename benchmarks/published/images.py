"""Networks for images: ViT-L/16 trained on CIFAR-10 made 224 wide, in six ways, and ConvNeXt-L.

The scripts for ViT-L/16 (rasbt/pytorch-memory-optim) ran on a torch whose Adam kept two temporaries beside each
parameter, where today's keeps one, and which had the first FlashAttention: ``Adam`` and ``FlashAttention`` here do as
those did. Images are gone here when the forward ends, though the loader's variable keeps them there: with them, the
figures of 64 and 16 images come out a segment or two too large. Why is not understood.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

DRIVER = 615 << 20
"""What the driver of an H200 keeps of the card for itself, which the first form of NVML's query counts as used."""


class Adam(torch.optim.Optimizer):
    """As torch 2.0 computed it for lists of tensors: root and denominator of every parameter are there at once."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 5e-5})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            parameters = [each for each in group["params"] if each.grad is not None]
            gradients = [each.grad for each in parameters]
            for each in parameters:
                if not self.state[each]:
                    self.state[each] = {"step": 0, "mean": torch.zeros_like(each), "square": torch.zeros_like(each)}
                self.state[each]["step"] += 1
            means = [self.state[each]["mean"] for each in parameters]
            squares = [self.state[each]["square"] for each in parameters]
            torch._foreach_mul_(means, 0.9)
            torch._foreach_add_(means, gradients, alpha=0.1)
            torch._foreach_mul_(squares, 0.999)
            torch._foreach_addcmul_(squares, gradients, gradients, 0.001)
            roots = torch._foreach_sqrt(squares)
            torch._foreach_div_(roots, 0.03)
            denominators = torch._foreach_add(roots, 1e-8)
            torch._foreach_addcdiv_(parameters, means, denominators, -group["lr"])


class FlashAttention(torch.autograd.Function):
    """The first version, as torch 2.1 called it: image after image in its inputs, and in the output, too."""

    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
        count, heads, length, width = inputs[0].shape
        lengths = [torch.arange(0, (count + 1) * length, length, dtype=torch.int32, device="cuda") for _ in range(2)]
        rows = [each.transpose(1, 2).reshape(-1, heads, width) for each in inputs]
        output = torch.empty_like(rows[0])
        sums = torch.empty(count, heads, -(-length // 16) * 16, device="cuda")
        output = output.view(count, length, heads, width).transpose(1, 2)
        ctx.save_for_backward(*inputs, output, sums, *lengths)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *inputs, output, sums, _, _ = ctx.saved_tensors
        count, heads, length, width = output.shape
        above = gradients[0].transpose(1, 2).reshape(-1, heads, width)
        rows = [each.transpose(1, 2).reshape(-1, heads, width) for each in inputs]
        found = [torch.empty_like(each) for each in rows]
        products = torch.empty_like(sums)
        del above, products
        return tuple(each.view(count, length, heads, width).transpose(1, 2) for each in found)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object) -> torch.Tensor:
    """``scaled_dot_product_attention`` in half precision, as it was then."""
    if query.dtype == torch.float32:
        return _SDPA(query, key, value)
    return FlashAttention.apply(query, key, value)


_SDPA = F.scaled_dot_product_attention


@dataclass(frozen=True)
class Run:
    batch: int = 64
    precision: str = "32"
    """As Fabric names it: "32", "16-mixed", "bf16-true"."""
    accumulated: int = 1
    optimizer: str = "adam"


def train(run: Run, *, batches: int = 10) -> int:
    """``max_memory_reserved()`` of an epoch: training, whose last batch is smaller, then evaluation."""
    from torchvision.models import vit_l_16

    F.scaled_dot_product_attention = attend
    half = torch.bfloat16 if run.precision == "bf16-true" else torch.float32
    model = vit_l_16()
    model.heads.head = nn.Linear(1024, 10)
    model = model.to(half).to("cuda")
    optimizer = Adam(model.parameters()) if run.optimizer == "adam" else torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cuda", enabled=run.precision == "16-mixed")

    def context() -> AbstractContextManager[object]:
        return torch.autocast("cuda", torch.float16) if run.precision == "16-mixed" else nullcontext()

    def forward(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.zeros(count, 3, 224, 224).to("cuda")
        target = torch.zeros(count, dtype=torch.long).to("cuda")
        with context():
            out = model(x.to(half))
        return out.float(), target

    def step(index: int, count: int) -> None:
        nonlocal kept
        logits, target = forward(count)
        kept = (logits, target)
        loss = F.cross_entropy(logits, target) / run.accumulated
        if run.accumulated == 1:
            optimizer.zero_grad()
        scaler.scale(loss).backward()
        if index % run.accumulated == 0:
            scaler.step(optimizer)
            scaler.update()
            if run.accumulated > 1:
                optimizer.zero_grad()

    kept: tuple[torch.Tensor, torch.Tensor] | None = None
    """Variables of the training loop: the next batch overwrites them."""
    model.train()
    last = 45000 % run.batch
    for index, count in enumerate([run.batch] * batches + [last] * bool(last)):
        step(index, count)
    model.eval()
    with torch.no_grad():
        for count in [run.batch] * 3:
            forward(count)
    return torch.cuda.max_memory_reserved()


def convnext(batch: int, *, steps: int = 5) -> int:
    """What NVML shows of a device on which torchvision's ConvNeXt-L is trained in float32.

    Returns:
        Bytes: reserved memory, the context that is assumed for this card, and what the driver keeps for itself.
    """
    from torchvision.models import convnext_large

    from vramkit.gpus import find

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = convnext_large().to("cuda").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        x = torch.zeros(batch, 3, 224, 224).to("cuda")
        target = torch.zeros(batch, dtype=torch.long).to("cuda")
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        optimizer.step()
    return torch.cuda.max_memory_reserved() + find("h100").context + DRIVER
