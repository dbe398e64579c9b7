"""How many images of a network fit: tried as timm's benchmark does, from above, each size where the last has failed.

Written anew from what its options and its log say. Needs timm.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

SIZES = (1024, 768, 512, 384, 256, 192, 128, 96, 64, 48, 32)
"""The sizes that it tries: powers of two, and one between each pair."""


def largest(name: str, *, width: int, above: int, trains: bool, of_2022: bool) -> int:
    """The first size that fits; 0: none does.

    Args:
        name: as timm calls the network.
        width: of the images, and their height.
        above: sizes above this one are left out: they need more.
        trains: or only infers.
        of_2022: torch 1.12: gradients are filled with zeros, and attention is not torch's.
    """
    import timm

    timm.layers.set_fused_attn(not of_2022)
    torch.backends.cudnn.benchmark = True
    run: Callable[[], object] | None = None
    for size in (each for each in SIZES if each <= above):
        torch.cuda.empty_cache()
        try:
            # The last one, which failed, is there until this one is made.
            model, shape = timm.create_model(name), (size, 3, width, width)
            run = _train(model, shape, of_2022) if trains else _infer(model, shape)
            for _ in range(5):
                run()
        except torch.OutOfMemoryError:
            continue
        return size
    return 0


def _train(model: nn.Module, shape: tuple[int, ...], of_2022: bool) -> Callable[[], object]:
    model.to("cuda").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, nesterov=True)
    images: torch.Tensor | None = None

    def step() -> None:
        nonlocal images
        images = torch.randn(shape, device="cuda") if images is None else images
        optimizer.zero_grad(set_to_none=not of_2022)
        with torch.autocast("cuda", torch.float16):
            output = model(images)
            target = torch.empty(shape[0], device="cuda", dtype=torch.long).random_(output.shape[1])
            F.cross_entropy(output, target).backward()
        optimizer.step()

    return step


def _infer(model: nn.Module, shape: tuple[int, ...]) -> Callable[[], object]:
    model.to("cuda").eval()
    images: torch.Tensor | None = None

    @torch.no_grad()
    def step() -> None:
        nonlocal images
        images = torch.randn(shape, device="cuda") if images is None else images
        with torch.autocast("cuda", torch.float16):
            model(images)

    return step
